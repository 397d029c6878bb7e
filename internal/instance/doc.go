// Package instance is the vocabulary of the service: what an EC2 instance is, which states
// it can be in and which may follow which, what a recorded change says, and the kinds of
// error of every layer.
//
// It imports the standard library only and holds no behaviour that needs a
// clock, a goroutine or a connection. Values are plain data. An [Instance] that
// has been handed to the journal, or that came from it, is shared between
// goroutines and is never modified: use [Instance.Clone] first.
package instance
