package conformance

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
)

// All runs every check of one subscriber, over all its connections, against the log. Each
// connection resumed at the cursor of the previous one.
func All(log *Log, connections ...*Connection) error {
	var errs []error
	for _, f := range Against(log, connections...) {
		errs = append(errs, f.Err)
	}
	return errors.Join(errs...)
}

// Ordered checks that (revision, index) strictly increases, and that between ENTERED
// and LEFT the events of an instance form a legal chain, each previous state being the
// state before it.
func Ordered(connections ...*Connection) error {
	o := NewOrder().order
	for _, c := range connections {
		sure := c.sure()
		if err := o.follow(c.Messages[:sure]); err != nil {
			return err
		}
		// What followed the last cursor is repeated in the next connection.
		rest := order{last: o.last, states: maps.Clone(o.states), whole: o.whole}
		if err := rest.follow(c.Messages[sure:]); err != nil {
			return err
		}
	}
	return nil
}

// Order runs the checks of [Ordered] on one connection, message by message, without keeping
// the messages. It is not safe for concurrent use.
type Order struct{ order }

// NewOrder returns an order without messages.
func NewOrder() *Order {
	return &Order{order{states: map[string]instancedv1.InstanceStateName{}}}
}

// Follow checks the next message. It must not be called after an error.
func (o *Order) Follow(m *instancedv1.WatchInstancesResponse) error {
	return o.follow([]Message{{WatchInstancesResponse: m}})
}

// notMatching represents the state of an instance that is known not to match.
const notMatching = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_UNSPECIFIED

// order is the position of a subscriber.
type order struct {
	last *instancedv1.Event
	// states has the last state of each instance; whole is whether no other instance
	// matches.
	states map[string]instancedv1.InstanceStateName
	whole  bool
}

func (o *order) follow(messages []Message) error {
	for _, m := range messages {
		if s := m.GetSnapshot(); s != nil {
			if s.GetFirst() {
				clear(o.states)
				if otherHistory(s.GetReason()) {
					o.last = nil
				}
			}
			for _, i := range s.GetInstances() {
				o.states[i.GetInstanceId()] = i.GetState().GetName()
			}
			o.whole = s.GetLast()
		}
		for _, e := range m.GetEvents().GetEvents() {
			if o.last != nil && compare(o.last, e) >= 0 {
				return fmt.Errorf("ordered: %s comes after %s", name(e), name(o.last))
			}
			o.last = e
			if err := o.chained(e); err != nil {
				return fmt.Errorf("ordered: %s: %w", name(e), err)
			}
		}
	}
	return nil
}

// chained checks that an event follows from the previous ones, and records it.
func (o *order) chained(e *instancedv1.Event) error {
	id := e.GetInstance().GetInstanceId()
	previous, current := e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName()
	known, seen := o.states[id]
	matched := seen && known != notMatching
	switch entered := e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_ENTERED; {
	case matched && known != previous:
		return fmt.Errorf("the previous state is %v, but it was %v", previous, known)
	case entered && matched:
		return errors.New("the instance begins to match, but it matched before")
	case !entered && !matched && (seen || o.whole):
		return errors.New("the instance matched before, but nothing was told of that")
	}
	switch e.GetType() {
	case instancedv1.EventType_EVENT_TYPE_ADDED:
		if e.GetPreviousState() != nil {
			return errors.New("an instance that was added has a previous state")
		}
	case instancedv1.EventType_EVENT_TYPE_STATE_CHANGED:
		if !instance.CanFollow(stateOf(previous), stateOf(current)) {
			return fmt.Errorf("%v cannot follow %v", current, previous)
		}
	case instancedv1.EventType_EVENT_TYPE_ATTRIBUTES_CHANGED, instancedv1.EventType_EVENT_TYPE_REMOVED:
		if current != previous {
			return fmt.Errorf("the state changed from %v to %v", previous, current)
		}
	case instancedv1.EventType_EVENT_TYPE_UNSPECIFIED:
		return errors.New("it has no type")
	}
	o.states[id] = current
	if e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_LEFT {
		o.states[id] = notMatching
	}
	return nil
}

func compare(a, b *instancedv1.Event) int {
	return cmp.Or(cmp.Compare(a.GetRevision(), b.GetRevision()), cmp.Compare(a.GetIndex(), b.GetIndex()))
}

func stateOf(name instancedv1.InstanceStateName) instance.State {
	// The contract numbers the states in the order of their codes, as instance does.
	return instance.State(name)
}

// otherHistory reports whether a snapshot begins another history than that of the cursor,
// so that revisions cannot be compared.
func otherHistory(reason instancedv1.UnusableCursorReason) bool {
	switch reason {
	case instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_OTHER_LOG,
		instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_ROLLED_BACK,
		instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_AHEAD:
		return true
	case instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED,
		instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED:
	}
	return false
}

// Complete checks that every matching change recorded after the cursor is delivered once,
// as recorded. After the last cursor of a connection it may have ended anywhere.
func Complete(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		spans, err := split(log, c)
		if err != nil {
			return fmt.Errorf("complete: connection %d: %w", i, err)
		}
		for _, s := range spans {
			what := fmt.Sprintf("complete: connection %d: after revision %d", i, s.after)
			sure, rest := s.events[:s.sure], s.events[s.sure:]
			if err := same(what, sure, log.Matching(c.Request.GetFilter(), s.after, s.upTo)); err != nil {
				return err
			}
			next := log.Matching(c.Request.GetFilter(), s.upTo, log.Head())
			what = fmt.Sprintf("complete: connection %d: after the last cursor, of revision %d", i, s.upTo)
			if err := same(what, rest, next[:min(len(next), len(rest))]); err != nil {
				return err
			}
		}
	}
	return nil
}

// span is a part of a connection that began at a known revision.
type span struct {
	after, upTo uint64
	events      []*instancedv1.Event
	// sure is the number of events before the last cursor, which is the one of upTo.
	sure int
}

// split divides a connection where it starts over with a snapshot.
func split(log *Log, c *Connection) ([]span, error) {
	var spans []span
	begin := func(cursor string) error {
		after, err := log.Revision(cursor)
		spans = append(spans, span{after: after, upTo: after})
		return err
	}
	if cursor := c.Request.GetAfterCursor(); cursor != "" && len(c.Messages) > 0 && !beginsAgain(c) {
		if err := begin(cursor); err != nil {
			return nil, err
		}
	}
	for n, m := range c.Messages {
		switch {
		case m.GetSnapshot().GetLast(), n == 0 && c.Request.GetFromNow():
			if err := begin(m.GetCursor()); err != nil {
				return nil, err
			}
			continue
		case len(spans) == 0, goesOn(c, n):
			continue
		}
		s := &spans[len(spans)-1]
		s.events = append(s.events, m.GetEvents().GetEvents()...)
		if m.GetCursor() != "" {
			revision, err := log.Revision(m.GetCursor())
			if err != nil {
				return nil, err
			}
			s.upTo, s.sure = revision, len(s.events)
		}
	}
	return spans, nil
}

// beginsAgain reports whether the first thing after the subscription is a snapshot.
func beginsAgain(c *Connection) bool {
	for n, m := range c.Messages {
		if n > 0 && !goesOn(c, n) {
			return m.GetSnapshot() != nil
		}
	}
	return false
}

// sure returns the number of messages up to and including the last cursor.
func (c *Connection) sure() int {
	for n, m := range slices.Backward(c.Messages) {
		if m.GetCursor() != "" && !goesOn(c, n) {
			return n + 1
		}
	}
	return 0
}

// goesOn reports whether a message begins another stream of a connection that has several.
// It may begin at an earlier position than the previous stream ended, namely before an
// unfinished batch.
func goesOn(c *Connection, n int) bool {
	return c.Followed && n > 0 && c.Messages[n].GetSubscribed() != nil
}

// Unique checks that resuming after a cursor delivers nothing at or before it, and that no
// connection delivers an event twice.
func Unique(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		cursor := c.Request.GetAfterCursor()
		if cursor == "" || beginsAgain(c) {
			continue
		}
		after, err := log.Revision(cursor)
		if err != nil {
			return fmt.Errorf("unique: connection %d: %w", i, err)
		}
		for _, e := range c.Events() {
			if e.GetRevision() <= after {
				return fmt.Errorf("unique: connection %d: %s was delivered before", i, name(e))
			}
		}
	}
	return unique(connections)
}

// Atomic checks that no cursor divides the changes of a batch.
func Atomic(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		var begun uint64
		for n, m := range c.Messages {
			for _, e := range m.GetEvents().GetEvents() {
				begun = max(begun, e.GetRevision())
			}
			if m.GetCursor() == "" || goesOn(c, n) {
				continue
			}
			revision, err := log.Revision(m.GetCursor())
			if err != nil {
				return fmt.Errorf("atomic: connection %d: %w", i, err)
			}
			if begun > revision {
				return fmt.Errorf("atomic: connection %d: revision %d stands before the cursor of revision %d", i, begun, revision)
			}
		}
	}
	return atomic(connections)
}

// Snapshot checks that a snapshot is exactly the fold of all records up to its cursor.
// That the first event after it is the next one is checked by [Complete].
func Snapshot(log *Log, connections ...*Connection) error {
	if err := snapshot(connections); err != nil {
		return err
	}
	for i, c := range connections {
		var parts []*instancedv1.Instance
		for _, m := range c.Messages {
			s := m.GetSnapshot()
			if s.GetFirst() {
				parts = nil
			}
			parts = append(parts, s.GetInstances()...)
			if !s.GetLast() {
				continue
			}
			revision, err := log.Revision(m.GetCursor())
			if err != nil {
				return fmt.Errorf("snapshot: connection %d: %w", i, err)
			}
			if err := isFold(parts, log.At(revision), c.Request.GetFilter()); err != nil {
				return fmt.Errorf("snapshot: connection %d: at revision %d: %w", i, revision, err)
			}
		}
	}
	return nil
}

// isFold compares instances with the ones of a fold that match a filter.
func isFold(got []*instancedv1.Instance, fold map[string]*instancedv1.Instance, filter *instancedv1.InstanceFilter) error {
	wanted := 0
	for _, i := range fold {
		if matches(filter, i) {
			wanted++
		}
	}
	if len(got) != wanted {
		return fmt.Errorf("%d instances, want %d", len(got), wanted)
	}
	for _, i := range got {
		if want := fold[i.GetInstanceId()]; !proto.Equal(i, want) {
			return fmt.Errorf("instance %s is\n%v\nwant\n%v", i.GetInstanceId(), i, want)
		}
	}
	return nil
}

// same compares events one by one.
func same(what string, got, want []*instancedv1.Event) error {
	for i := range min(len(got), len(want)) {
		if !proto.Equal(got[i], want[i]) {
			return fmt.Errorf("%s: event %d is\n%v\nwant\n%v", what, i, got[i], want[i])
		}
	}
	switch {
	case len(got) < len(want):
		return fmt.Errorf("%s: %d events, want %d; the first that is missing is %s", what, len(got), len(want), name(want[len(got)]))
	case len(got) > len(want):
		return fmt.Errorf("%s: %d events, want %d; the first too many is %s", what, len(got), len(want), name(got[len(want)]))
	}
	return nil
}

func name(e *instancedv1.Event) string {
	return fmt.Sprintf("event %d.%d (%s %v -> %v)", e.GetRevision(), e.GetIndex(),
		e.GetInstance().GetInstanceId(), e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName())
}
