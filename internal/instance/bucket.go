package instance

// TokenBucket is the state of one of a backend's token buckets, as far as it is known.
type TokenBucket struct {
	// Name is such as "requests of StartInstances".
	Name string
	// Level is the current number of tokens; below zero if some were taken in advance.
	Level float64
	// Capacity is the maximum number of tokens, Refill the number currently added per
	// second: less than the documented limit while the backend throttles although its
	// bucket should not be empty.
	Capacity, Refill float64
	// Waiting is the number of instances waiting for tokens, of all callers; 0 for a bucket
	// of requests.
	Waiting int
}
