package conformance

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Recorded checks a connection against the history of all instances that it mentions,
// between its first cursor and its last. The connection's filter is unknown, and it has at
// most one snapshot. Each event must be as recorded, and no event may be missing for an
// instance that was known to match. If the history is incomplete, nothing older than its
// first event is compared.
func Recorded(c *Connection, history []*instancedv1.Event, whole bool) error {
	recorded := map[place]*instancedv1.Event{}
	for _, e := range history {
		recorded[placeOf(e)] = e
	}
	matching := map[string]bool{}
	next := 0
	// missing finds events that were recorded before a place and not delivered.
	missing := func(before *instancedv1.Event) error {
		for ; next < len(history) && (before == nil || compare(history[next], before) < 0); next++ {
			if e := history[next]; matching[e.GetInstance().GetInstanceId()] {
				return fmt.Errorf("complete: %s is recorded and not delivered", name(e))
			}
		}
		return nil
	}
	for _, m := range c.Messages[:c.sure()] {
		if s := m.GetSnapshot(); s != nil {
			if s.GetFirst() {
				clear(matching)
			}
			for _, i := range s.GetInstances() {
				matching[i.GetInstanceId()] = true
			}
		}
		for _, e := range m.GetEvents().GetEvents() {
			id, left := e.GetInstance().GetInstanceId(), e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_LEFT
			if !whole && (len(history) == 0 || compare(e, history[0]) < 0) {
				matching[id] = !left
				continue
			}
			if err := missing(e); err != nil {
				return err
			}
			was, ok := recorded[placeOf(e)]
			if !ok {
				return fmt.Errorf("complete: %s is delivered and not recorded", name(e))
			}
			if !equalButForMatch(e, was) {
				return fmt.Errorf("complete: %s is\n%v\nand recorded as\n%v", name(e), e, was)
			}
			if next < len(history) && compare(history[next], e) == 0 {
				next++
			}
			matching[id] = !left
		}
	}
	return missing(nil)
}

// RecordedSnapshot checks the snapshot of a connection, whose filter is unknown, against
// the history before the snapshot's cursor: each instance must be as last recorded. It
// returns how many instances it compared, and how many it could not compare because the
// history has no earlier event for them.
func RecordedSnapshot(c *Connection, before []*instancedv1.Event) (compared, unknown int, err error) {
	last := map[string]*instancedv1.Event{}
	for _, e := range before {
		last[e.GetInstance().GetInstanceId()] = e
	}
	for _, i := range c.snapshot() {
		switch e := last[i.GetInstanceId()]; {
		case e == nil:
			unknown++
			continue
		case err != nil: // the first is told
		case e.GetType() == instancedv1.EventType_EVENT_TYPE_REMOVED:
			err = fmt.Errorf("snapshot: instance %s is there, and was removed by %s", i.GetInstanceId(), name(e))
		case !proto.Equal(i, e.GetInstance()):
			err = fmt.Errorf("snapshot: instance %s is\n%v\nand recorded, by %s, as\n%v", i.GetInstanceId(), i, name(e), e.GetInstance())
		}
		compared++
	}
	return compared, unknown, err
}

// snapshot returns the instances of the last complete snapshot.
func (c *Connection) snapshot() []*instancedv1.Instance {
	var whole, parts []*instancedv1.Instance
	for _, m := range c.Messages {
		s := m.GetSnapshot()
		if s.GetFirst() {
			parts = nil
		}
		parts = append(parts, s.GetInstances()...)
		if s.GetLast() {
			whole = parts
		}
	}
	return whole
}

// Mentioned returns the ids of all instances that occur in connections.
func Mentioned(connections ...*Connection) []string {
	ids := map[string]bool{}
	for _, c := range connections {
		for _, m := range c.Messages {
			for _, i := range m.GetSnapshot().GetInstances() {
				ids[i.GetInstanceId()] = true
			}
			for _, e := range m.GetEvents().GetEvents() {
				ids[e.GetInstance().GetInstanceId()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

func equalButForMatch(a, b *instancedv1.Event) bool {
	if a.GetMatch() != b.GetMatch() {
		b = proto.CloneOf(b)
		b.Match = a.GetMatch()
	}
	return proto.Equal(a, b)
}
