// Package promises checks what subscribers saw against what they were promised:
// one function a promise, over recorded streams and calls, whatever was done to the
// server meanwhile.
//
// A [Log] is the truth to compare with. It is made of one unfiltered subscription
// that was there from the beginning; compare it with ListEvents by [Log.Agrees],
// which reads the journal in another way.
package promises
