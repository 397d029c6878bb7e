package lifecycle

import (
	"context"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Limits of requests. They stand in the comments of the public contract too.
const (
	MaxInstanceIDs         = 1000
	MaxFilterValues        = 1000
	MaxFilterTags          = 50
	MaxFilterBytes         = 64 << 10
	MaxTagKeyLength        = 128
	MaxTagValueLength      = 256
	MaxPageSize            = 1000
	DefaultPageSize        = 100
	MaxPageBytes           = 1 << 20
	MaxClientTokenLength   = 64
	MaxAdditionalInfoBytes = 1024
	// MaxClaimedNameLength is for a name that a caller claims; one that was verified may be
	// longer.
	MaxClaimedNameLength = 128
	MaxRequestIDLength   = 64
	MaxWait              = time.Hour
	DefaultWait          = 5 * time.Minute
	MinProgressInterval  = time.Second
	MaxProgressInterval  = time.Minute
	DefaultProgress      = 10 * time.Second
)

// Caller is who makes a request, as the server that received it says.
type Caller struct {
	// Principal is never empty; a caller that did not say is "anonymous". It identifies the
	// caller and how the name was verified: see [instance.CertificatePrincipal].
	Principal string
	// Authenticated is whether the principal was verified.
	Authenticated bool
	// RequestID is in the log and in the cause of what the request changes.
	RequestID string
}

type callerKey struct{}

// WithCaller returns a context of a request with its caller.
func WithCaller(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// CallerOf returns the caller of the request with this context; the zero caller, who is not
// authenticated, if it has none.
func CallerOf(ctx context.Context) Caller {
	caller, _ := ctx.Value(callerKey{}).(Caller)
	return caller
}

// FailureMode says what one bad instance does to a call. Other values are rejected when the
// request is checked.
type FailureMode uint8

// The failure modes.
const (
	WholeCall FailureMode = iota
	PerInstance
)

// CommandRequest asks for a verb. It is unchecked: all fields are as the caller sent them.
type CommandRequest struct {
	Verb           instance.Verb
	InstanceIDs    []string
	AdditionalInfo string
	DryRun         bool
	ClientToken    string
	FailureMode    FailureMode
	Hibernate      bool
	Force          bool
	SkipOSShutdown bool
}

// CommandResponse is the response to a command that was not rejected.
type CommandResponse struct {
	// Changes are in the order asked for.
	Changes []instance.StateChange
	// Failures are in the order asked for; of [PerInstance] only.
	Failures []instance.Failure
	// Cursor is at or before the first change that the call caused.
	Cursor string
	// EndCursor is behind what was recorded before the response.
	EndCursor string
}

// Filter is an unchecked [instance.Filter]. A state that does not exist is a value out of
// range, and is rejected when the request is checked.
type Filter struct {
	InstanceIDs       []string
	States            []instance.State
	Tags              []TagFilter
	Types             []string
	AvailabilityZones []string
	Regions           []string
	AccountIDs        []string
}

// TagFilter selects by one tag; no values means any.
type TagFilter struct {
	Key    string
	Values []string
}

// DescribeRequest selects instances; it is unchecked.
type DescribeRequest struct {
	Filter Filter
	// Select narrows the filter down by a criterion of the server's; nil selects all.
	// SelectKey identifies the criterion: a page token is bound to it.
	Select    func(*instance.Instance) bool
	SelectKey string
	PageSize  int
	PageToken string
	MinCursor string
}

// DescribeResponse is a page of instances, in the order of their ids. They are
// shared and must not be modified.
type DescribeResponse struct {
	Instances      []*instance.Instance
	NextPageToken  string
	Cursor         string
	LastReconciled time.Time
}

// WaitUntil says when a wait ends.
type WaitUntil uint8

// The ends of a wait.
const (
	AllSettled WaitUntil = iota
	FirstFailure
)

// WaitRequest says what to wait for; it is unchecked.
type WaitRequest struct {
	InstanceIDs []string
	States      []instance.State
	AfterCursor string
	// Timeout is nil for the default.
	Timeout *time.Duration
	Until   WaitUntil
}

// WaitOutcome is how the wait for one instance ended.
type WaitOutcome uint8

// The outcomes of a wait.
const (
	Unsettled WaitOutcome = iota
	Reached
	Unreachable
	TimedOut
)

// WaitResult is how the wait for one instance ended.
type WaitResult struct {
	ID      instance.ID
	Outcome WaitOutcome
	// Instance is nil if the timeout came before this process had seen the cursor, or if it
	// does not know the instance.
	Instance *instance.Instance
	// ReachedState is the wanted state that was reached, of [Reached] only.
	ReachedState instance.State
	// Reason is why the state cannot be reached, of [Unreachable] only; may be nil.
	Reason *instance.StateReason
}

// WaitResponse has one result for each instance, in the order asked for.
type WaitResponse struct {
	Results []WaitResult
	Cursor  string
}

// UnusableCursorPolicy says what a watch does with a cursor that it cannot serve.
type UnusableCursorPolicy uint8

// The policies.
const (
	FailOnUnusable UnusableCursorPolicy = iota
	SnapshotOnUnusable
)

// WatchRequest says what to watch; it is unchecked.
type WatchRequest struct {
	AfterCursor string
	FromNow     bool
	Filter      Filter
	// ProgressInterval is nil for the default.
	ProgressInterval *time.Duration
	OnUnusable       UnusableCursorPolicy
}

// EventsRequest selects recorded changes; it is unchecked.
type EventsRequest struct {
	InstanceIDs []string
	AfterCursor string
	PageSize    int
	PageToken   string
}

// EventsResponse is a page of recorded changes, oldest first.
type EventsResponse struct {
	Events        []RecordedEvent
	NextPageToken string
	// Cursor is set on the last page only.
	Cursor string
}

// RecordedEvent is a change and where in the log it stands.
type RecordedEvent struct {
	Position journal.Position
	Index    uint32
	Change   *instance.Change
}

// Info describes the running service.
type Info struct {
	LogID           string
	OwnerAddress    string
	IsOwner         bool
	LastReconciled  time.Time
	Cursor          string
	OldestCursor    string
	JournalBytes    int64
	InstanceCount   int
	Retention       time.Duration
	JournalMaxBytes int64
	TokenLifetime   time.Duration
	// Memory is about how many bytes of memory are in use, by purpose.
	Memory journal.Memory
	// Buckets are empty unless this process commands a backend that limits rates.
	Buckets []instance.TokenBucket
}

// Batch is a batch of the journal, as a [Watch] hands it on.
type Batch = journal.Batch

// Event is an event of a [Batch].
type Event = journal.Event

// Position is a position in the journal.
type Position = journal.Position

// Record is what is recorded of one instance.
type Record = journal.Record

// Snapshot is the state of all instances.
type Snapshot struct {
	// Records are in the order of the instances' ids, and not filtered: see
	// [Watch.Matches]. They are shared and must not be modified.
	Records []*Record
	// Reason is why there is a snapshot instead of the requested changes, such as
	// CURSOR_EXPIRED; empty if a snapshot was requested.
	Reason string
}

// WatchItem is one item of a [Watch]: a snapshot or a batch, never both.
type WatchItem struct {
	Snapshot *Snapshot
	// Batch has all events recorded together, not filtered: see [Watch.Match]. It is shared and must not be modified.
	Batch *Batch
}
