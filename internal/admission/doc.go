// Package admission decides what a server has room for: how many requests, streams and
// connections it serves at once, for whom, and until when. Each endpoint has an [Admission]
// of its own.
//
// All limits are divided by the rule of [instance.Shares]: a caller may have as many places
// as are free, so that the next one still finds some. Nothing waits here: a call without a
// place is rejected at once, with a retry delay.
//
// A connection belongs to the first principal who is admitted on it; until then it has no
// owner. When there are too many, one without a call in flight gives way.
package admission
