package instance

import "time"

// ClockSkew is how far two times of one change may be apart, of which this host's clock gave
// one and the backend's clock the other, or of which one was rounded to a whole second. It
// is also how long after the end of a call the backend may still act on it. Whatever compares
// the two clocks uses it.
const ClockSkew = 3 * time.Second

// sentSkew is how much earlier than a command was sent a change of it may be dated, before the
// date is rounded down to a whole second. Within it, a change that somebody else made just
// before is taken for that of the command; so it is as short as synchronized clocks allow.
const sentSkew = time.Second

// MayHaveMade reports whether a command may have made a change that the backend dates: one
// that was sent and ended at times of this host, ended being zero while it has not. It is the
// one rule by which a change is attributed to a command whose answer was lost.
func MayHaveMade(change, sent, ended time.Time) bool {
	return !change.Before(sent.Add(-sentSkew).Truncate(time.Second)) && (ended.IsZero() || !change.After(ended.Add(ClockSkew)))
}
