package server_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc/codes"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// The model is one register for each instance: its state. What is checked is that every
// answer could have been given by one register that all calls use one after the other,
// each at some moment between its request and its answer.
//
// The register's state is its trail: every state that the instance was in, in order. So
// an answer that carries a cursor is tied to one place of the trail, and what a Wait says
// of the past can be checked. Instances move by themselves, too: to running, to stopped,
// or because of a call whose outcome is unknown. The event stream
// tells when; each such event is an operation of a client of its own, the world, which
// took place after the server learnt of it and before the stream delivered it. The world
// does only what [moves] allows: it never claims an instance in a caller's stead.
//
// What the model promises:
//   - a start or stop that answers with a change is the only one that made that change;
//     one that answers with none finds the state that it names;
//   - one that is refused for the state of the instance finds a state that forbids it;
//   - Describe shows the state at the place of its cursor, and no older one than what
//     anybody was told before it was asked; on a process that follows, no older one than
//     its min_cursor;
//   - a Wait that says REACHED finds the state, or finds that it was there after the
//     cursor; UNREACHABLE, that a start fell back after it; TIMED_OUT, neither.

// step is an operation on one instance: the request and the answer together.
type step struct {
	kind kind
	// from and to are what a command was told, or what an event says; to is also what a
	// Describe or a Wait shows as the present state; 0 where it shows none.
	from, to byte
	// refused is EC2's code of a refusal.
	refused string
	// place is how many changes of the instance there were after the step; -1 if nothing
	// tells.
	place int
	// since is the minimum number of changes so far.
	since int
	// illegal is why an event cannot be the world's doing; empty if it can.
	illegal string
	wait    waited
}

// waited is what is special about a Wait.
type waited struct {
	wanted  byte
	outcome instancedv1.WaitOutcome
	// may is the first place at which being in the wanted state may count, must the first
	// at which it does, and having fallen back, too. They differ where it is not known
	// which state was the present one as the call came.
	may, must int
	// seen is the last place that the answer reflects.
	seen int
}

type kind uint8

const (
	starts kind = iota
	stops
	describes
	waits
	world
)

// letters stand for the states of a trail.
var letters = map[instancedv1.InstanceStateName]byte{
	pending: 'p', running: 'r', stopping: 'g', stopped: 's', shuttingDown: 'd', terminated: 't',
}

// register is the model of one instance that begins in a state.
func register(begin byte) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return string(begin) },
		Step: func(state, input, _ any) (bool, any) {
			trail, s := state.(string), input.(step)
			if !s.fits(trail) {
				return false, trail
			}
			if s.from != s.to && (s.kind == starts || s.kind == stops || s.kind == world) && s.refused == "" {
				return true, trail + string(s.to)
			}
			return true, trail
		},
		DescribeOperation: func(input, _ any) string { return input.(step).String() },
		DescribeState:     func(state any) string { return state.(string) },
	}
}

// fits reports whether the step can be taken where the trail ends.
func (s step) fits(trail string) bool {
	last, changes := trail[len(trail)-1], len(trail)-1
	if changes < s.since {
		return false
	}
	switch s.kind {
	case starts:
		return s.commandFits(trail, s.from == 's' && s.to == 'p', s.from == 'p' || s.from == 'r')
	case stops:
		return s.commandFits(trail, (s.from == 'r' || s.from == 'p') && s.to == 'g', s.from == 'g' || s.from == 's')
	case describes:
		return last == s.to && changes == s.place
	case waits:
		return (last == s.to || s.to == 0) && s.wait.fits(trail)
	case world:
		return s.illegal == "" && last == s.from && changes+1 == s.place
	}
	return false
}

// commandFits reports whether a command can have had its answer; change and nothing say
// whether what it was told is what the verb does, or leaves alone.
func (s step) commandFits(trail string, change, nothing bool) bool {
	last := trail[len(trail)-1]
	switch {
	case s.refused != "":
		return s.refusalFits(trail)
	case s.from == s.to:
		return last == s.from && nothing
	}
	return last == s.from && change && (s.place < 0 || len(trail) == s.place)
}

func (s step) refusalFits(trail string) bool {
	last := trail[len(trail)-1]
	switch s.refused {
	case "IncorrectInstanceState":
		neverRan := last == 'p' && !strings.Contains(trail, "r")
		return last == 'd' || last == 't' || s.kind == starts && last == 'g' || s.kind == stops && neverRan
	case "InsufficientInstanceCapacity":
		return s.kind == starts // it says nothing of the state
	}
	return false
}

func (w waited) fits(trail string) bool {
	switch w.outcome {
	case instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
		return trail[len(trail)-1] == w.wanted || w.reachedIn(trail, w.may)
	case instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE:
		return w.fellIn(trail)
	case instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT:
		seen := trail[:w.seen+1]
		return !w.reachedIn(seen, w.must) && !w.fellIn(seen)
	case instancedv1.WaitOutcome_WAIT_OUTCOME_UNSPECIFIED, instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED:
	}
	return false
}

func (w waited) reachedIn(trail string, from int) bool {
	return strings.IndexByte(trail[min(from, len(trail)):], w.wanted) >= 0
}

func (w waited) fellIn(trail string) bool {
	for i := w.must; i < len(trail); i++ {
		if w.wanted == 'r' && trail[i-1] == 'p' && (trail[i] == 's' || trail[i] == 'g') {
			return true
		}
	}
	return false
}

func (s step) String() string {
	at := ""
	if s.place >= 0 {
		at = fmt.Sprintf(" at %d", s.place)
	}
	switch s.kind {
	case starts, stops:
		verb := []string{"start", "stop"}[s.kind]
		if s.refused != "" {
			return verb + ": " + s.refused
		}
		return fmt.Sprintf("%s: %c -> %c%s", verb, s.from, s.to, at)
	case describes:
		return fmt.Sprintf("describe since %d: %c%s", s.since, s.to, at)
	case waits:
		return fmt.Sprintf("wait for %c from %d or %d: %v, now %c", s.wait.wanted, s.wait.may, s.wait.must, s.wait.outcome, s.to)
	case world:
	}
	return fmt.Sprintf("world: %c -> %c%s%s", s.from, s.to, at, s.illegal)
}

// trace is everything that was asked, answered and recorded.
type trace struct {
	calls []called
	// events are the recorded changes of state, in their order, and when they came.
	events []arrived
	begin  map[string]byte
	// revision returns that of a cursor.
	revision func(cursor string) (uint64, error)
	moves    moves
}

type arrived struct {
	*instancedv1.Event
	at time.Time
}

// moves are what may happen beside the commands that were answered.
type moves struct {
	// fall is whether starts may fall back.
	fall bool
	// outside is whether somebody else starts and stops instances.
	outside bool
}

// called is one call, of one client, on one or a few instances.
type called struct {
	client       int
	requestID    string
	begun, ended time.Time
	// cursor is the one that the call brought, if any.
	cursor string
	// follows is whether it was answered by a process that follows.
	follows bool
	kind    kind
	answers []answered
	// unknown is whether it may have been carried out although it failed.
	unknown bool
}

// answered is what a call was told of one instance.
type answered struct {
	id       string
	from, to byte
	refused  string
	wanted   byte
	outcome  instancedv1.WaitOutcome
	// cursor is that of the answer.
	cursor string
}

// check returns the instances whose histories do not fit the model, with what there is to
// see of them.
func (h *trace) check() (map[string]porcupine.LinearizationInfo, error) {
	bad := make(map[string]porcupine.LinearizationInfo)
	for id, begin := range h.begin {
		operations, err := h.operations(id)
		if err != nil {
			return nil, err
		}
		model := register(begin)
		result, info := porcupine.CheckOperationsVerbose(model, operations, time.Minute)
		switch result {
		case porcupine.Ok:
		case porcupine.Illegal:
			bad[id] = info
		case porcupine.Unknown:
			return nil, fmt.Errorf("%s: whether %d operations fit cannot be told in time", id, len(operations))
		}
	}
	return bad, nil
}

// operations returns what happened to one instance, the world's doings among it.
func (h *trace) operations(id string) ([]porcupine.Operation, error) {
	var all []porcupine.Operation
	var events []arrived
	for _, e := range h.events {
		if e.GetInstance().GetInstanceId() == id {
			events = append(events, e)
		}
	}
	callers := make(map[string]int) // the places of what callers were told that they caused
	clients := 0
	for _, c := range h.calls {
		clients = max(clients, c.client+1)
		for _, a := range c.answers {
			if a.id != id {
				continue
			}
			s, err := h.step(c, a, events)
			if err != nil {
				return nil, err
			}
			if s.place >= 0 && (c.kind == starts || c.kind == stops) {
				callers[c.requestID] = s.place
			}
			op := porcupine.Operation{ClientId: c.client, Input: s, Call: c.begun.UnixNano(), Return: c.ended.UnixNano()}
			if c.follows {
				op.Call = 0 // only its cursor says how old the answer may be
			}
			all = append(all, op)
		}
	}
	for i, e := range events {
		if place, ok := callers[e.GetCause().GetRequestId()]; ok && place == i+1 {
			continue
		}
		s := step{kind: world, from: letters[e.GetPreviousState().GetName()], to: letters[e.GetInstance().GetState().GetName()], place: i + 1}
		if !h.mayMove(s, e) {
			s.illegal = fmt.Sprintf(", which only a command does; its cause is %v", e.GetCause())
		}
		all = append(all, porcupine.Operation{ClientId: clients, Input: s, Call: e.GetObservedAt().AsTime().UnixNano(), Return: e.at.UnixNano()})
	}
	return all, nil
}

// mayMove reports whether an event may be the world's doing.
func (h *trace) mayMove(s step, e arrived) bool {
	switch {
	case s.from == 'p' && s.to == 'r', s.from == 'g' && s.to == 's':
		return true
	case h.moves.fall && s.from == 'p' && s.to == 's':
		return true
	case h.moves.outside && e.GetCause().GetExternal():
		return true
	}
	// Which of several calls with an unknown outcome it was cannot always be told.
	return slices.ContainsFunc(h.calls, func(c called) bool {
		return c.unknown && !c.begun.After(e.at) && (e.GetCause().GetExternal() || e.GetCause().GetRequestId() == c.requestID)
	})
}

// step makes one operation of an answer.
func (h *trace) step(c called, a answered, events []arrived) (step, error) {
	s := step{kind: c.kind, from: a.from, to: a.to, refused: a.refused, place: -1}
	before, err := h.changes(events, c.cursor)
	if err != nil {
		return s, err
	}
	now, err := h.changes(events, a.cursor)
	if err != nil {
		return s, err
	}
	s.since = before
	switch c.kind {
	case starts, stops:
		s.since = 0
		if s.from != s.to {
			s.place = caused(events, c.requestID, a)
		}
	case describes:
		s.place = now
	case waits:
		s.since = max(before, now)
		s.wait = waited{wanted: a.wanted, outcome: a.outcome, may: before, must: before + 1, seen: now}
		known := 0
		for _, e := range events {
			if e.at.Before(c.begun) {
				known++
			}
		}
		switch {
		case c.cursor == "":
			s.wait.may, s.wait.must = known, len(events)+1
		case known > before && !c.follows:
			s.wait.may++ // the state at the cursor is no longer the present one
		}
	case world:
	}
	return s, nil
}

// caused returns the place of the event that a caller was told of; -1 if there is none.
func caused(events []arrived, requestID string, a answered) int {
	for i, e := range events {
		if e.GetCause().GetRequestId() == requestID && letters[e.GetPreviousState().GetName()] == a.from && letters[e.GetInstance().GetState().GetName()] == a.to {
			return i + 1
		}
	}
	return -1
}

// changes returns how many of the events are at or before a cursor.
func (h *trace) changes(events []arrived, cursor string) (int, error) {
	if cursor == "" {
		return 0, nil
	}
	revision, err := h.revision(cursor)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range events {
		if e.GetRevision() <= revision {
			n++
		}
	}
	return n, nil
}

// unknownOutcome reports whether a command that failed may have been carried out.
func unknownOutcome(code codes.Code) bool {
	switch code {
	case codes.DeadlineExceeded, codes.Canceled, codes.Unavailable, codes.Internal, codes.Unknown:
		return true
	default:
		return false
	}
}
