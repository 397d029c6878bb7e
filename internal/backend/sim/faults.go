package sim

import (
	"fmt"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/instanced/instanced/internal/instance"
)

// FaultKind is the kind of a fault.
type FaultKind uint8

// The kinds of fault.
const (
	FaultUnspecified FaultKind = iota
	// InsufficientCapacity rejects starts with InsufficientInstanceCapacity.
	InsufficientCapacity
	// InstanceLimitExceeded rejects starts.
	InstanceLimitExceeded
	// VcpuLimitExceeded rejects starts.
	VcpuLimitExceeded
	// FallBackToStopped accepts a start that then ends in stopped, with
	// Fault.StateReason.
	FallBackToStopped
	// RequestLimitExceeded throttles the call.
	RequestLimitExceeded
	// Unauthorized rejects the call, dry runs included.
	Unauthorized
	// SlowCall delays the call by Fault.Delay, before anything is done.
	SlowCall
	// Unavailable rejects the call; nothing is done.
	Unavailable
	// InternalError fails the call; nothing is done, but the error leaves that open.
	InternalError
	// AnswerLost carries out the call and loses its response.
	AnswerLost
	// NoticeLost loses the notice of a change.
	NoticeLost
	// NoticeLate delays the notice of a change by Fault.Delay.
	NoticeLate
	// NoticeDoubled delivers the notice of a change twice.
	NoticeDoubled
	// NoticeReordered delivers the notice of a change after the next one of the same
	// instance, or after a minute if there is none.
	NoticeReordered
	// DescribeLag makes Describe show the instance as it was Fault.Delay ago.
	DescribeLag
	// StuckTransition keeps an instance in the transitional state that it enters,
	// until a stop or a termination is forced.
	StuckTransition
)

var faultNames = [...]string{
	FaultUnspecified:      "unspecified",
	InsufficientCapacity:  "insufficient capacity",
	InstanceLimitExceeded: "instance limit exceeded",
	VcpuLimitExceeded:     "vCPU limit exceeded",
	FallBackToStopped:     "fall back to stopped",
	RequestLimitExceeded:  "request limit exceeded",
	Unauthorized:          "unauthorized",
	SlowCall:              "slow call",
	Unavailable:           "unavailable",
	InternalError:         "internal error",
	AnswerLost:            "answer lost",
	NoticeLost:            "notice lost",
	NoticeLate:            "notice late",
	NoticeDoubled:         "notice doubled",
	NoticeReordered:       "notice reordered",
	DescribeLag:           "describe lag",
	StuckTransition:       "stuck transition",
}

// String returns a readable name of the kind.
func (k FaultKind) String() string {
	if int(k) < len(faultNames) {
		return faultNames[k]
	}
	return fmt.Sprintf("fault(%d)", uint8(k))
}

// verbs returns the calls to which faults of the kind can apply.
func (k FaultKind) verbs() []instance.Verb {
	commands := []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate}
	switch k {
	case InsufficientCapacity, InstanceLimitExceeded, VcpuLimitExceeded, FallBackToStopped:
		return commands[:1]
	case StuckTransition:
		return []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbTerminate}
	case Unauthorized, AnswerLost:
		return commands
	case RequestLimitExceeded, SlowCall, Unavailable, InternalError:
		return append(commands, verbDescribe)
	case DescribeLag:
		return []instance.Verb{verbDescribe}
	case FaultUnspecified, NoticeLost, NoticeLate, NoticeDoubled, NoticeReordered:
	}
	return nil
}

// delayed reports whether faults of the kind have a delay.
func (k FaultKind) delayed() bool { return k == SlowCall || k == NoticeLate || k == DescribeLag }

// ofNotices reports whether faults of the kind apply to notices, not calls.
func (k FaultKind) ofNotices() bool { return k >= NoticeLost && k <= NoticeReordered }

// Match says what a fault applies to. All fields must match; values within a
// field are alternatives; an empty field matches everything.
type Match struct {
	// Verbs are the calls: the four commands and DescribeInstances. Empty means the four
	// commands only, so that background reads use up no fault.
	Verbs []instance.Verb
	IDs   []instance.ID
	// Tags must all be present with these values.
	Tags              map[string]string
	Types             []string
	AvailabilityZones []string
}

var commands = []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate}

// covers reports whether the call matches.
func (m *Match) covers(verb instance.Verb) bool {
	if len(m.Verbs) == 0 {
		return slices.Contains(commands, verb)
	}
	return slices.Contains(m.Verbs, verb)
}

// anyInstance reports whether every instance matches.
func (m *Match) anyInstance() bool {
	return len(m.IDs)+len(m.Tags)+len(m.Types)+len(m.AvailabilityZones) == 0
}

// selects reports whether the instance matches.
func (m *Match) selects(inst *instance.Instance) bool {
	for key, value := range m.Tags {
		if have, ok := inst.Tags[key]; !ok || have != value {
			return false
		}
	}
	return among(m.IDs, inst.ID) && among(m.Types, inst.Type) && among(m.AvailabilityZones, inst.AvailabilityZone)
}

func among[T comparable](wanted []T, have T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, have)
}

// Fault is an injected fault.
type Fault struct {
	Kind  FaultKind
	Match Match
	// Probability is above 0 and up to 1; 0 means always.
	Probability float64
	// Remaining is the number of calls or notices to which it still applies; 0 means no
	// limit.
	Remaining int
	// Delay is for SlowCall, NoticeLate and DescribeLag, at most an hour.
	Delay time.Duration
	// StateReason is for FallBackToStopped. Nil means Client.InternalError, as if the key
	// of an encrypted volume could not be used. An empty message is completed.
	StateReason *instance.StateReason
	// Partial is for InsufficientCapacity: the instances of the call that the fault does
	// not match are started anyway, as EC2 may do.
	Partial bool
}

// The limits of a plan.
const (
	maxFaults     = 1000
	maxFaultDelay = time.Hour
)

// SetFaults replaces the plan. All problems are reported together, and the plan is then
// unchanged.
func (b *Backend) SetFaults(faults []Fault) error {
	now, closed := b.lock()
	if closed != nil {
		return closed
	}
	defer b.unlock(now)
	return b.setPlan(faults)
}

func (b *Backend) setPlan(faults []Fault) error {
	var problems violations
	checkFaults(faults, &problems)
	if err := problems.err(); err != nil {
		return err
	}
	b.plan, b.lag = nil, 0
	b.extendPlanLocked(faults)
	return nil
}

// checkFaults checks faults, whether set alone or created with instances.
func checkFaults(faults []Fault, problems *violations) {
	if len(faults) > maxFaults {
		problems.add("faults", "are %d: want at most %d", len(faults), maxFaults)
	}
	for i := range faults {
		faults[i].check(fmt.Sprintf("faults[%d]", i), problems)
	}
}

func (f *Fault) check(path string, problems *violations) {
	if f.Kind == FaultUnspecified || int(f.Kind) >= len(faultNames) {
		problems.add(path+".kind", "is not a kind of fault")
		return
	}
	if f.Kind.ofNotices() && len(f.Match.Verbs) > 0 {
		problems.add(path+".match.verbs", "must be empty: a notice is not of a call")
	} else {
		f.checkVerbs(path+".match.verbs", problems)
	}
	for i, id := range f.Match.IDs {
		if err := malformed(id); err != nil {
			problems.refuse(fmt.Sprintf("%s.match.instance_ids[%d]", path, i), err)
		}
	}
	if !(f.Probability >= 0 && f.Probability <= 1) {
		problems.add(path+".probability", "is %v: want 0, which means always, to 1", f.Probability)
	}
	if f.Remaining < 0 || f.Remaining > math.MaxInt32 {
		problems.add(path+".remaining", "is %d: want 0, which means without end, or more", f.Remaining)
	}
	switch {
	case f.Kind.delayed() && (f.Delay <= 0 || f.Delay > maxFaultDelay):
		problems.add(path+".delay", "is %v: want more than 0 and at most %v", f.Delay, maxFaultDelay)
	case !f.Kind.delayed() && f.Delay != 0:
		problems.add(path+".delay", "does not apply to this kind of fault")
	}
	if f.StateReason != nil {
		f.checkReason(path+".state_reason", problems)
	}
	if f.Partial && f.Kind != InsufficientCapacity {
		problems.add(path+".partial", "applies to insufficient capacity only")
	}
}

func (f *Fault) checkVerbs(path string, problems *violations) {
	can := f.Kind.verbs()
	for i, verb := range f.Match.Verbs {
		if !slices.Contains(can, verb) {
			problems.add(fmt.Sprintf("%s[%d]", path, i), "is %.40q, which a fault of this kind does not strike: want %v", verb, can)
		}
	}
}

func (f *Fault) checkReason(path string, problems *violations) {
	const maxText = 1024
	switch r := f.StateReason; {
	case f.Kind != FallBackToStopped:
		problems.add(path, "applies to a fall back to stopped only")
	case r.Code == "":
		problems.add(path+".code", "is empty: want one such as Client.InternalError")
	case len(r.Code) > maxText || len(r.Message) > maxText || !utf8.ValidString(r.Code) || !utf8.ValidString(r.Message):
		problems.add(path, "is not text of at most %d bytes", maxText)
	}
}

// Faults returns the plan with the current Remaining of each fault, without the ones that
// are used up.
func (b *Backend) Faults() []Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	faults := make([]Fault, 0, len(b.plan))
	for _, f := range b.plan {
		if !f.spent() {
			faults = append(faults, f.Fault)
		}
	}
	return faults
}
