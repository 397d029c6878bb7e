package conformance

// Finding is the result of checking a guarantee.
type Finding struct {
	Promise string
	// Checked is the number of units that were checked. If it is 0 the guarantee was not
	// checked.
	Checked int
	Unit    string
	// Err is the violation of the guarantee; nil if there is none.
	Err error
}

// Alone checks a subscriber's connections without a log to compare with, for any filter.
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

// Against compares a subscriber's connections with a log.
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

// Together merges the findings of several subscribers by guarantee, in the order in which
// they occur.
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

// counts are the numbers of units to check.
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
