package conformance

import (
	"errors"
	"fmt"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// place is the position of an event in the log.
type place struct {
	revision uint64
	index    uint32
}

func placeOf(e *instancedv1.Event) place { return place{e.GetRevision(), e.GetIndex()} }

// unique checks that no event is delivered twice, and that a connection of several streams
// resumes where it was.
func unique(connections []*Connection) error {
	seen := map[place]bool{}
	for i, c := range connections {
		behind := map[place]bool{} // what comes again in the next connection
		sure, last := c.sure(), c.Request.GetAfterCursor()
		for n, m := range c.Messages {
			switch cursor := m.GetCursor(); {
			case cursor == "":
			case goesOn(c, n) && last != "" && cursor != last:
				return fmt.Errorf("unique: connection %d: a stream goes on at another cursor than that of the one before", i)
			default:
				last = cursor
			}
			if s := m.GetSnapshot(); s.GetFirst() && otherHistory(s.GetReason()) {
				clear(seen)
				clear(behind)
			}
			for _, e := range m.GetEvents().GetEvents() {
				if seen[placeOf(e)] || behind[placeOf(e)] {
					return fmt.Errorf("unique: connection %d: %s was delivered before", i, name(e))
				}
				if n < sure {
					seen[placeOf(e)] = true
				} else {
					behind[placeOf(e)] = true
				}
			}
		}
	}
	return nil
}

// atomic checks that no cursor separates events that were recorded together.
func atomic(connections []*Connection) error {
	for i, c := range connections {
		// The highest revision that began, and the highest before a cursor.
		var begun, closed uint64
		for n, m := range c.Messages {
			if s := m.GetSnapshot(); s.GetFirst() && otherHistory(s.GetReason()) {
				begun, closed = 0, 0
			}
			for _, e := range m.GetEvents().GetEvents() {
				if e.GetRevision() <= closed {
					return fmt.Errorf("atomic: connection %d: %s comes after a cursor of its revision or a later one", i, name(e))
				}
				begun = max(begun, e.GetRevision())
			}
			if m.GetCursor() != "" && !goesOn(c, n) {
				closed = begun
			}
		}
	}
	return nil
}

// snapshot checks the form of snapshots: their parts are consecutive, the first and the
// last are marked, the last has the cursor, and each instance occurs once, in the order of
// the ids.
func snapshot(connections []*Connection) error {
	for i, c := range connections {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("snapshot: connection %d: "+format, append([]any{i}, args...)...)
		}
		open, last := false, ""
		for n, m := range c.Messages {
			s := m.GetSnapshot()
			switch {
			case goesOn(c, n):
				open = false // the next one begins anew
				continue
			case s == nil && open:
				return fail("something else comes before its last part")
			case s == nil:
				continue
			case s.GetFirst() == open:
				return fail("its first part, and no other, is marked as that")
			case s.GetLast() != (m.GetCursor() != ""):
				return fail("the last part, and no other, has the cursor")
			case !s.GetFirst() && s.GetReason() != instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED:
				return fail("a part that is not the first has a reason")
			}
			if s.GetFirst() {
				last = ""
			}
			for _, instance := range s.GetInstances() {
				if instance.GetInstanceId() <= last {
					return fail("%s comes after %s, which is not the order of the ids", instance.GetInstanceId(), last)
				}
				last = instance.GetInstanceId()
			}
			open = !s.GetLast()
		}
	}
	return nil
}

// forward checks that cursors never go back: everything up to a cursor was delivered, and
// nothing after it, so that a cursor from before an event never follows the event.
func forward(connections []*Connection) error {
	for i, c := range connections {
		seen := map[string]int{}
		events := 0
		for n, m := range c.Messages {
			events += len(m.GetEvents().GetEvents())
			if m.GetProgress() != nil && m.GetCursor() == "" {
				return errors.New("progress: a message has no cursor")
			}
			if m.GetCursor() == "" || goesOn(c, n) {
				continue
			}
			if at, ok := seen[m.GetCursor()]; ok && at != events {
				return fmt.Errorf("progress: connection %d: message %d has a cursor from before %d of the events that were delivered", i, n+1, events-at)
			}
			seen[m.GetCursor()] = events
		}
	}
	return nil
}

// goodbyes checks the form of goodbye messages.
func goodbyes(connections []*Connection) error {
	for i, c := range connections {
		cursor := c.Request.GetAfterCursor()
		for _, stream := range c.Streams() {
			for n, m := range stream {
				if m.GetCursor() != "" {
					cursor = m.GetCursor()
				}
				bye := m.GetGoodbye()
				switch {
				case bye == nil:
				case n < len(stream)-1:
					return fmt.Errorf("goodbye: connection %d: something comes after it", i)
				case bye.GetReason() == instancedv1.GoodbyeReason_GOODBYE_REASON_UNSPECIFIED:
					return fmt.Errorf("goodbye: connection %d: there is no reason", i)
				case bye.GetRetryDelay().AsDuration() <= 0:
					return fmt.Errorf("goodbye: connection %d: there is no retry delay", i)
				case m.GetCursor() == "" && cursor != "":
					return fmt.Errorf("goodbye: connection %d: there is no cursor", i)
				}
			}
		}
	}
	return nil
}
