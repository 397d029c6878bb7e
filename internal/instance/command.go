package instance

import "time"

// DefaultCallTimeout is how long one call to a backend may take, and so how long one that an
// earlier owner sent last may still take effect. The backend that makes the calls and the
// service that looks for their effects agree on it.
const DefaultCallTimeout = 20 * time.Second

// Command is one call of a verb, checked and ready for a backend.
type Command struct {
	Verb Verb
	// IDs are distinct, 1 to 1000, in the order asked for.
	IDs []ID
	// PerInstance asks for an answer for each instance; otherwise one bad id
	// refuses the whole call, as EC2 does.
	PerInstance bool
	// DryRun asks only whether the caller may. The answer is always an error.
	DryRun bool
	// AdditionalInfo is reserved by EC2 and passed on as it is. Start only.
	AdditionalInfo string
	// Hibernate is for Stop only, Force and SkipOSShutdown for Stop and Terminate.
	Hibernate      bool
	Force          bool
	SkipOSShutdown bool
	// Principal is who asks.
	Principal string
	// Term is that in which the command was accepted, and in which alone it may be sent to
	// the backend; nil where only one process can command it.
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

// StateChange is one line of the answer to a verb: the state in which the call
// found the instance and the one in which it left it. They are equal when there
// was nothing to do.
type StateChange struct {
	ID       ID
	Previous State
	Current  State
	// At is when the backend made the change, or saw that there was nothing to do, as
	// exactly as it can tell, and rather too early than too late. It is what puts the
	// answers about one instance in order.
	At time.Time
	// After is the instance in full as the call left it, where the backend tells;
	// else nil, and Describe has to be asked.
	After *Instance
}

// Failure is why one instance of a per-instance call was refused.
type Failure struct {
	ID  ID
	Err *Error
}

// Result is a backend's answer to a [Command].
type Result struct {
	// Changes has one element for each instance that the call was carried out on,
	// in the order of the command's IDs. Reboot has them too, with equal states.
	Changes []StateChange
	// Failures has the others, of a per-instance call.
	Failures []Failure
}

// DescribeQuery asks a backend for instances, a page at a time.
type DescribeQuery struct {
	// IDs asks for these instances; those that do not exist are left out of the
	// answer, without an error.
	IDs []ID
	// All asks for every instance. It excludes IDs; a query with neither is an
	// error, so that an empty list never means all.
	All bool
	// PageSize is the most instances to return, 5 to 1000; 0 leaves it to the
	// backend.
	PageSize int
	// PageToken is the NextPageToken of the page before, empty for the first.
	PageToken string
}

// Read is a read by callers that is answered from what was recorded, and that the
// simulator has a say in.
type Read struct {
	// Action is the name of the action, such as DescribeInstances.
	Action Verb
	// IDs are the instances that it names, each once; none for all.
	IDs []ID
	// Filtered says that it has filters or asks for a page.
	Filtered bool
}

// DescribePage is one page of the answer to a [DescribeQuery].
type DescribePage struct {
	Instances []*Instance
	// Unreadable are the instances of the page that are there, but are described in a way
	// that cannot be understood, each with what is wrong. What was known of them stays.
	Unreadable map[ID]error
	// NextPageToken is empty on the last page. The backend sees to it that pages end.
	NextPageToken string
}

// Notice says that something was heard of an instance. Notices may be lost, late,
// doubled and out of order; they are a reason to look, not the truth.
type Notice struct {
	ID ID
	// State is the state that the instance is said to have entered.
	State State
	// OccurredAt is when it is said to have entered it.
	OccurredAt time.Time
	Source     Source
	// Instance is the instance in full as it was then, where the notice carries
	// it; else nil.
	Instance *Instance
	// Ack says that whatever followed from the notice is recorded, so that it need
	// not be delivered again. It may be called from any goroutine, and is never nil.
	Ack func()
}

// Launch asks the simulator for new instances, as EC2's RunInstances does.
type Launch struct {
	// ImageID is kept and means nothing.
	ImageID string
	Type    string
	// AvailabilityZone, Tenancy and CPUCredits are EC2's default when empty.
	AvailabilityZone string
	Tenancy          string
	CPUCredits       string
	// Lifecycle is "spot" for Spot Instances, else empty. SpotInstanceType and
	// InterruptionBehavior are EC2's default when empty: one-time, terminate.
	Lifecycle             string
	SpotInstanceType      string
	InterruptionBehavior  string
	Tags                  map[string]string
	HibernationConfigured bool
	DisableAPIStop        bool
	DisableAPITermination bool
	Count                 int
	// ClientToken makes the launch happen once; empty for none.
	ClientToken string
	// Forgotten is what was asked for beside all this. It has no effect but to count in
	// whether a launch with a client token is the same as an earlier one.
	Forgotten string
}

// Modification asks the simulator for other attributes of instances. Nil and empty
// fields change nothing.
type Modification struct {
	// IDs are distinct, 1 to 1000.
	IDs     []ID
	SetTags map[string]string
	// RemoveTags are removed whatever their value is, RemoveTagValues only where they
	// have this one, and RemoveAllTags removes all.
	RemoveTags            []string
	RemoveTagValues       map[string]string
	RemoveAllTags         bool
	DisableAPIStop        *bool
	DisableAPITermination *bool
	// Type is another instance type, for stopped instances.
	Type string
}
