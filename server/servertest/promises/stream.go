package promises

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
)

// All checks everything that one subscriber, over all its connections, can be checked
// for against the log. Each connection went on at the cursor of the one before.
func All(log *Log, connections ...*Connection) error {
	return errors.Join(
		Ordered(connections...),
		Complete(log, connections...),
		Unique(log, connections...),
		Atomic(log, connections...),
		Snapshot(log, connections...),
	)
}

// Ordered checks that (revision, index) strictly increases, and that between ENTERED
// and LEFT the events of an instance form a legal chain, each previous state being the
// state before it.
func Ordered(connections ...*Connection) error {
	var last *instancedv1.Event
	states := map[string]instancedv1.InstanceStateName{}
	for _, c := range connections {
		for _, m := range c.Messages {
			if s := m.GetSnapshot(); s != nil {
				if s.GetFirst() {
					clear(states)
				}
				for _, i := range s.GetInstances() {
					states[i.GetInstanceId()] = i.GetState().GetName()
				}
			}
			for _, e := range m.GetEvents().GetEvents() {
				if last != nil && compare(last, e) >= 0 {
					return fmt.Errorf("ordered: %s comes after %s", name(e), name(last))
				}
				last = e
				if err := chained(states, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func compare(a, b *instancedv1.Event) int {
	return cmp.Or(cmp.Compare(a.GetRevision(), b.GetRevision()), cmp.Compare(a.GetIndex(), b.GetIndex()))
}

// chained checks that an event follows from the states before it, and keeps them.
func chained(states map[string]instancedv1.InstanceStateName, e *instancedv1.Event) error {
	id := e.GetInstance().GetInstanceId()
	previous, current := e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName()
	if known, ok := states[id]; ok && known != previous {
		return fmt.Errorf("ordered: %s: the previous state is %v, but it was %v", name(e), previous, known)
	}
	switch e.GetType() {
	case instancedv1.EventType_EVENT_TYPE_ADDED:
		if e.GetPreviousState() != nil {
			return fmt.Errorf("ordered: %s: an instance that was added has a previous state", name(e))
		}
	case instancedv1.EventType_EVENT_TYPE_STATE_CHANGED:
		if !instance.CanFollow(stateOf(previous), stateOf(current)) {
			return fmt.Errorf("ordered: %s: %v cannot follow %v", name(e), current, previous)
		}
	case instancedv1.EventType_EVENT_TYPE_ATTRIBUTES_CHANGED, instancedv1.EventType_EVENT_TYPE_REMOVED:
		if current != previous {
			return fmt.Errorf("ordered: %s: the state changed from %v to %v", name(e), previous, current)
		}
	case instancedv1.EventType_EVENT_TYPE_UNSPECIFIED:
		return fmt.Errorf("ordered: %s: has no type", name(e))
	}
	states[id] = current
	if e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_LEFT {
		delete(states, id)
	}
	return nil
}

func stateOf(name instancedv1.InstanceStateName) instance.State {
	// The contract numbers the states in the order of their codes, as instance does.
	return instance.State(name)
}

// Complete checks that every recorded change after the cursor that matches is
// delivered, once and as it was recorded.
func Complete(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		spans, err := split(log, c)
		if err != nil {
			return fmt.Errorf("complete: connection %d: %w", i, err)
		}
		for _, s := range spans {
			what := fmt.Sprintf("complete: connection %d: after revision %d", i, s.after)
			if err := same(what, s.events, log.Matching(c.Request.GetFilter(), s.after, s.upTo)); err != nil {
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
}

// split cuts a connection where it begins again with a snapshot.
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
	for _, m := range c.Messages {
		switch {
		case m.GetSnapshot().GetLast(), m.GetSubscribed() != nil && c.Request.GetFromNow():
			if err := begin(m.GetCursor()); err != nil {
				return nil, err
			}
			continue
		case len(spans) == 0:
			continue
		}
		s := &spans[len(spans)-1]
		s.events = append(s.events, m.GetEvents().GetEvents()...)
		for _, e := range m.GetEvents().GetEvents() {
			s.upTo = e.GetRevision()
		}
		if m.GetCursor() != "" {
			revision, err := log.Revision(m.GetCursor())
			if err != nil {
				return nil, err
			}
			s.upTo = revision
		}
	}
	return spans, nil
}

// beginsAgain reports whether the first thing after the subscription is a snapshot.
func beginsAgain(c *Connection) bool {
	return len(c.Messages) > 1 && c.Messages[1].GetSnapshot() != nil
}

// Unique checks that resuming after a cursor never delivers what was at or before it,
// and that no connection delivers an event twice.
func Unique(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		var after uint64
		if cursor := c.Request.GetAfterCursor(); cursor != "" && !beginsAgain(c) {
			var err error
			if after, err = log.Revision(cursor); err != nil {
				return fmt.Errorf("unique: connection %d: %w", i, err)
			}
		}
		seen := map[[2]uint64]bool{}
		for _, e := range c.Events() {
			key := [2]uint64{e.GetRevision(), uint64(e.GetIndex())}
			if e.GetRevision() <= after || seen[key] {
				return fmt.Errorf("unique: connection %d: %s was delivered before", i, name(e))
			}
			seen[key] = true
		}
	}
	return nil
}

// Atomic checks that no cursor divides the changes of a batch.
func Atomic(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		open := map[uint64]bool{}
		for _, m := range c.Messages {
			for _, e := range m.GetEvents().GetEvents() {
				open[e.GetRevision()] = true
			}
			if m.GetCursor() == "" {
				continue
			}
			revision, err := log.Revision(m.GetCursor())
			if err != nil {
				return fmt.Errorf("atomic: connection %d: %w", i, err)
			}
			for r := range open {
				if r > revision {
					return fmt.Errorf("atomic: connection %d: revision %d stands before the cursor of revision %d", i, r, revision)
				}
			}
			clear(open)
		}
	}
	return nil
}

// Snapshot checks that a snapshot is exactly the fold of all records up to its cursor.
// That the first event after it is the next one is checked by [Complete].
func Snapshot(log *Log, connections ...*Connection) error {
	for i, c := range connections {
		var parts []*instancedv1.Instance
		for _, m := range c.Messages {
			s := m.GetSnapshot()
			if s == nil {
				continue
			}
			if s.GetFirst() {
				parts = nil
			}
			parts = append(parts, s.GetInstances()...)
			if s.GetLast() != (m.GetCursor() != "") {
				return fmt.Errorf("snapshot: connection %d: the last part, and no other, has the cursor", i)
			}
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

// isFold compares instances with what of a fold matches a filter.
func isFold(got []*instancedv1.Instance, fold map[string]*instancedv1.Instance, filter *instancedv1.InstanceFilter) error {
	if !slices.IsSortedFunc(got, func(a, b *instancedv1.Instance) int { return cmp.Compare(a.GetInstanceId(), b.GetInstanceId()) }) {
		return errors.New("the instances are not in the order of their ids")
	}
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
