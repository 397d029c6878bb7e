package instance

// TokenBucket is how one of a backend's token buckets stands, as far as is known.
type TokenBucket struct {
	// Name is such as "requests of StartInstances".
	Name string
	// Level is how many tokens there are; below zero when some are taken in advance.
	Level float64
	// Capacity is how many there can be, Refill how many come in a second at present:
	// fewer than the limits say while the backend throttles although its bucket should not
	// be empty.
	Capacity, Refill float64
	// Waiting is how many instances wait for tokens, of all callers; 0 of a bucket of
	// requests.
	Waiting int
}
