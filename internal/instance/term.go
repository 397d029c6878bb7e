package instance

import "time"

// MinTermLeft is the minimum remaining time of a term in which a command may be sent to the
// backend.
const MinTermLeft = 500 * time.Millisecond

// Term is a time during which no other process commands the backend. It is safe for
// concurrent use.
type Term interface {
	// Remaining returns how long the term is certain to last, by the monotonic clock; zero
	// or less once another process may command the backend.
	Remaining() time.Duration
	// Done is closed when this process knows that the term is over; Remaining is zero then.
	Done() <-chan struct{}
}

// CheckTerm returns nil while a command of the term may be sent to the backend, else an
// error of [ReasonNotOwner]. Without a term commands may always be sent.
func CheckTerm(t Term) *Error {
	if t == nil || t.Remaining() >= MinTermLeft {
		return nil
	}
	return &Error{
		Kind:       KindUnavailable,
		Reason:     ReasonNotOwner,
		Message:    "this process cannot be sure that no other commands the backend; nothing was changed by this call",
		RetryAfter: time.Second,
	}
}
