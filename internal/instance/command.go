package instance

import "time"

// DefaultCallTimeout is the timeout of one call to a backend, and so how long the last call
// of an earlier owner may still take effect. The backend, which makes the calls, and the
// observer, which looks for their effects, both use it.
const DefaultCallTimeout = 20 * time.Second

// Command is one call of a verb, checked and ready for a backend.
type Command struct {
	Verb Verb
	// IDs are distinct, 1 to 1000, in the order of the request.
	IDs []ID
	// PerInstance asks for a result for each instance; otherwise one failing instance fails
	// the whole call, as in EC2.
	PerInstance bool
	// DryRun only checks whether the caller is allowed to do this. The result is always an
	// error.
	DryRun bool
	// AdditionalInfo is reserved by EC2 and passed on as it is. Start only.
	AdditionalInfo string
	// Hibernate is for Stop only, Force and SkipOSShutdown for Stop and Terminate.
	Hibernate      bool
	Force          bool
	SkipOSShutdown bool
	// Principal is the caller.
	Principal string
	// Term is the term in which the command was accepted; it may be sent to the backend in
	// this term only. Nil if only one process can command the backend.
	Term Term
	// Sent is called with instances of the command just before the first byte of a request
	// for them may be written, each time that one is, and never for a dry run. An instance
	// that it was not called for has not been changed by the command.
	//
	// Requeued is called with instances that it was called for when it is certain that no
	// request for them changed any, and they wait to be sent again, as after a throttle.
	//
	// A backend calls both before Execute returns, possibly with its own lock held, so they
	// must not call it. Either may be nil.
	Sent, Requeued func(ids []ID)
}

// StateChange is the effect of a command on one instance: its state before and after the
// call, which are equal if there was nothing to do.
type StateChange struct {
	ID       ID
	Previous State
	Current  State
	// At is when the backend made the change, or saw that there was nothing to do, as
	// precisely as is known; if in doubt, it is too early rather than too late. It orders
	// the answers about one instance.
	At time.Time
	// After is the whole instance after the call, if the backend returns it; else nil, and
	// Describe must be called.
	After *Instance
	// Deduced is whether the backend concluded from a description that the call made the
	// change, since the answer was lost. Previous is then what was known before, or the usual state.
	Deduced bool
}

// Failure is why a per-instance call failed for one instance.
type Failure struct {
	ID  ID
	Err *Error
}

// Result is a backend's answer to a [Command].
type Result struct {
	// Changes has one element for each instance for which the call was carried out, in the
	// order of the command's IDs. Reboot has them too, with equal states.
	Changes []StateChange
	// Failures has the other instances of a per-instance call.
	Failures []Failure
}

// DescribeQuery asks a backend for instances, a page at a time.
type DescribeQuery struct {
	// IDs selects these instances. Those that do not exist are omitted from the result,
	// without an error.
	IDs []ID
	// All selects every instance. It excludes IDs; a query with neither is an error, so
	// that an empty list never means all.
	All bool
	// PageSize is the maximum number of instances to return, 5 to 1000; 0 means the
	// backend's default.
	PageSize int
	// PageToken is the NextPageToken of the previous page; empty for the first.
	PageToken string
}

// Read is a read that is answered from the journal, and that the simulator may delay or
// reject.
type Read struct {
	// Action is the name of the action, such as DescribeInstances.
	Action Verb
	// IDs are the instances that it names, each once; none for all.
	IDs []ID
	// Filtered is whether it has filters or asks for a page.
	Filtered bool
}

// DescribePage is one page of the answer to a [DescribeQuery].
type DescribePage struct {
	Instances []*Instance
	// Unreadable are the instances of the page whose description cannot be understood, each
	// with the reason. What was known of them is kept.
	Unreadable map[ID]error
	// NextPageToken is empty on the last page. The backend ensures that there is a last
	// page.
	NextPageToken string
}

// Notice reports a change of an instance. Notices may be lost, late, duplicated or out of
// order: they are a reason to look at the instance, not the truth.
type Notice struct {
	ID ID
	// State is the state that the instance has reportedly entered.
	State State
	// OccurredAt is when it has reportedly entered it.
	OccurredAt time.Time
	Source     Source
	// Instance is the whole instance at that time, if the notice has it; else nil.
	Instance *Instance
	// Ack acknowledges that everything that followed from the notice is recorded, so that
	// it need not be delivered again. It may be called from any goroutine, and is never
	// nil.
	Ack func()
}

// Launch asks the simulator for new instances, as EC2's RunInstances does.
type Launch struct {
	// ImageID is kept, and has no effect.
	ImageID string
	Type    string
	// AvailabilityZone, Tenancy and CPUCredits are EC2's defaults if empty.
	AvailabilityZone string
	Tenancy          string
	CPUCredits       string
	// Lifecycle is "spot" for Spot Instances, else empty. SpotInstanceType and
	// InterruptionBehavior are EC2's defaults if empty: one-time, terminate.
	Lifecycle             string
	SpotInstanceType      string
	InterruptionBehavior  string
	Tags                  map[string]string
	HibernationConfigured bool
	DisableAPIStop        bool
	DisableAPITermination bool
	Count                 int
	// ClientToken makes the launch idempotent; empty for none.
	ClientToken string
	// Forgotten is the rest of the request. It has no effect, except that a launch with the
	// same client token must have the same.
	Forgotten string
}

// Modification changes attributes of instances in the simulator. Nil and empty fields
// change nothing.
type Modification struct {
	// IDs are distinct, 1 to 1000.
	IDs     []ID
	SetTags map[string]string
	// RemoveTags are removed whatever their values, RemoveTagValues only if they have these
	// values, and RemoveAllTags removes all tags.
	RemoveTags            []string
	RemoveTagValues       map[string]string
	RemoveAllTags         bool
	DisableAPIStop        *bool
	DisableAPITermination *bool
	// Type is the new instance type, for stopped instances only.
	Type string
}
