package sim

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Beside the four commands there are a read, in faults and buckets, and others, in
// buckets.
const (
	verbDescribe       instance.Verb = "DescribeInstances"
	verbDescribeStatus instance.Verb = "DescribeInstanceStatus"
	verbRun            instance.Verb = "RunInstances"
)

// retryThrottled is when to retry after a throttle caused by a fault.
const retryThrottled = time.Second

// bucket is a token bucket, which is full at first. Tokens beyond its capacity are lost.
type bucket struct {
	capacity, refill float64 // refill is in tokens a second
	tokens           float64
	at               time.Time // when tokens was right
}

func newBucket(capacity, refill float64) *bucket {
	return &bucket{capacity: capacity, refill: refill, tokens: capacity}
}

// take takes n tokens or, if there are fewer, none; then it returns how long it takes until
// there are enough.
func (b *bucket) take(now time.Time, n int) (wait time.Duration) {
	if !b.at.IsZero() {
		b.tokens = min(b.capacity, b.tokens+now.Sub(b.at).Seconds()*b.refill)
	}
	b.at = now
	// Slightly less than a token counts as one, because of rounding errors.
	const epsilon = 1e-6
	if short := float64(n) - b.tokens; short > epsilon {
		return time.Duration(short / b.refill * float64(time.Second))
	}
	b.tokens = max(0, b.tokens-float64(n))
	return 0
}

// status returns the state of a bucket as of now.
func (b *bucket) status(name string, now time.Time) instance.TokenBucket {
	level := b.tokens
	if !b.at.IsZero() {
		level = min(b.capacity, level+now.Sub(b.at).Seconds()*b.refill)
	}
	return instance.TokenBucket{Name: name, Level: level, Capacity: b.capacity, Refill: b.refill}
}

// drain takes all whole tokens and returns their number.
func (b *bucket) drain() int {
	n := int(b.tokens)
	b.tokens -= float64(n)
	return n
}

// buckets are the token buckets of one account in one Region: a request bucket for each
// action, and for some one that gives a token for each instance. Source: EC2
// Developer Guide, "Request throttling for the Amazon EC2 API".
type buckets struct {
	start, stop, reboot, terminate  *bucket
	run                             *bucket
	describeFiltered, describeOther *bucket
	resource                        map[instance.Verb]*bucket
	reads                           map[readBucket]*bucket // by callers; made when needed
}

func newBuckets() buckets {
	return buckets{
		start:            newBucket(5, 2),
		stop:             newBucket(50, 5),
		reboot:           newBucket(50, 5),
		terminate:        newBucket(100, 5),
		run:              newBucket(5, 2),
		describeFiltered: newBucket(100, 20),
		describeOther:    newBucket(50, 10),
		resource: map[instance.Verb]*bucket{
			instance.VerbStart:     newBucket(1000, 2),
			instance.VerbStop:      newBucket(1000, 20),
			instance.VerbTerminate: newBucket(1000, 20),
			verbRun:                newBucket(1000, 2),
		},
		reads: make(map[readBucket]*bucket),
	}
}

// request returns the request bucket of an action. A Describe that is neither
// filtered nor paginated has one of its own.
func (b *buckets) request(action instance.Verb, unfiltered bool) *bucket {
	switch action {
	case instance.VerbStart:
		return b.start
	case instance.VerbStop:
		return b.stop
	case instance.VerbReboot:
		return b.reboot
	case instance.VerbTerminate:
		return b.terminate
	case verbRun:
		return b.run
	}
	if unfiltered {
		return b.describeOther
	}
	return b.describeFiltered
}

// Buckets returns the state of the token buckets, without the buckets of reads by callers; none
// unless Config.Throttle is set.
func (b *Backend) Buckets() []instance.TokenBucket {
	if !b.config.Throttle {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	list := []instance.TokenBucket{
		b.buckets.describeFiltered.status("requests of DescribeInstances", now),
		b.buckets.describeOther.status("unfiltered requests of DescribeInstances", now),
	}
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate, verbRun} {
		list = append(list, b.buckets.request(verb, false).status("requests of "+string(verb), now))
		if resource := b.buckets.resource[verb]; resource != nil {
			list = append(list, resource.status("instances of "+string(verb), now))
		}
	}
	return list
}
