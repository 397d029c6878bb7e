// Package admission decides what a server has room for: how many requests, streams and
// connections it serves at once, for whom, and until when. Each endpoint has an [Admission]
// of its own.
//
// All bounds are divided by the rule of [instance.Shares]: a caller may have as many places as
// it leaves free, so whoever comes next still finds some. Nothing waits here: what has no
// place is refused at once, with a delay after which to try again.
//
// A connection belongs to the first principal who is admitted on it; until then it has no
// owner. When there are too many, one without a call in flight gives way.
package admission
