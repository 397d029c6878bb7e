package instance

import "time"

// minimumCharge is what EC2 charges for each start, however short. Source: EC2
// API Reference, StartInstances: "a one-minute minimum", thereafter by the second.
const minimumCharge = 60

// Billed returns the seconds of usage charged up to now: those charged at earlier changes
// of state and those since BilledFrom. A started second counts.
func (s *SimulatorAttributes) Billed(now time.Time) int64 {
	if s == nil {
		return 0
	}
	if s.BilledFrom.IsZero() {
		return s.BilledSeconds
	}
	run := int64((now.Sub(s.BilledFrom) + time.Second - 1) / time.Second)
	return s.BilledSeconds + max(run, minimumCharge)
}
