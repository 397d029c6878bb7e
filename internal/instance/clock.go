package instance

import "time"

// ClockSkew is the maximum difference between two times of one change if one is from this
// host's clock and the other from the backend's, or if one was rounded to a whole second.
// It is also how long after the end of a call the backend may still act on it. Every
// comparison of the two clocks uses it.
const ClockSkew = 3 * time.Second

// sentSkew is how much earlier than the sending of a command its change may be dated,
// before the date is rounded down to a whole second. A change that another caller made
// within this time before is attributed to the command, so it is as short as synchronized
// clocks allow.
const sentSkew = time.Second

// WallClock returns a time in UTC without its monotonic reading, as it is when it has been stored and
// read again.
func WallClock(t time.Time) time.Time { return t.Round(0).UTC() }

// MayHaveMade reports whether a command may have made a change, given when the command was
// sent and ended by this host's clock and when the change occurred by the backend's. The
// zero value of ended means that the command is in flight. It is the one rule that
// attributes a change to a command whose answer was lost.
func MayHaveMade(change, sent, ended time.Time) bool {
	return !change.Before(sent.Add(-sentSkew).Truncate(time.Second)) && (ended.IsZero() || !change.After(ended.Add(ClockSkew)))
}

// LastSent is the latest time at which a command may have been sent that made a change which
// the backend dates to a whole second, by the same rule.
func LastSent(change time.Time) time.Time {
	return change.Truncate(time.Second).Add(time.Second + sentSkew - 1)
}
