package conformance

// Finding is how a promise fared.
type Finding struct {
	Promise string
	// Checked is how many of its unit were looked at. Of none nothing is known.
	Checked int
	Unit    string
	// Err is what breaks the promise, nil if nothing does.
	Err error
}

// Alone checks what a subscriber's connections show by themselves: without a log to
// compare with, and whatever the filter is.
func Alone(connections ...*Connection) []Finding {
	n := count(connections)
	return []Finding{
		{"Ordered", n.events, "event", Ordered(connections...)},
		{"Unique", n.events, "event", unique(connections)},
		{"Atomic", n.cursors, "cursor", atomic(connections)},
		{"Snapshot", n.snapshots, "snapshot", snapshot(connections)},
		{"Progress", n.progress, "message", forward(connections)},
		{"Goodbye", n.goodbyes, "goodbye", goodbyes(connections)},
	}
}

// Against checks all of a subscriber's connections that can be compared with a log.
func Against(log *Log, connections ...*Connection) []Finding {
	n := count(connections)
	return []Finding{
		{"Ordered", n.events, "event", Ordered(connections...)},
		{"Complete", n.events, "event", Complete(log, connections...)},
		{"Unique", n.events, "event", Unique(log, connections...)},
		{"Atomic", n.cursors, "cursor", Atomic(log, connections...)},
		{"Snapshot", n.snapshots, "snapshot", Snapshot(log, connections...)},
		{"Progress", n.progress, "message", forward(connections)},
		{"Goodbye", n.goodbyes, "goodbye", goodbyes(connections)},
	}
}

// Together puts the findings of several subscribers together, promise by promise in the
// order in which they occur.
func Together(findings ...[]Finding) []Finding {
	var all []Finding
	at := map[string]int{}
	for _, of := range findings {
		for _, f := range of {
			n, ok := at[f.Promise]
			if !ok {
				at[f.Promise] = len(all)
				all = append(all, f)
				continue
			}
			all[n].Checked += f.Checked
			if all[n].Err == nil {
				all[n].Err = f.Err
			}
		}
	}
	return all
}

// counts are how much there is to be checked.
type counts struct{ events, cursors, snapshots, progress, goodbyes int }

func count(connections []*Connection) counts {
	var n counts
	for _, c := range connections {
		for _, m := range c.Messages {
			n.events += len(m.GetEvents().GetEvents())
			if m.GetCursor() != "" {
				n.cursors++
			}
			if m.GetSnapshot().GetLast() {
				n.snapshots++
			}
			if m.GetProgress() != nil {
				n.progress++
			}
			if m.GetGoodbye() != nil {
				n.goodbyes++
			}
		}
	}
	return n
}
