package ec2

import (
	"math"
	"time"
)

const (
	// rateRecovery is how long it takes to go back to the full rate after EC2 throttled
	// although its bucket, as far as was known here, held enough.
	rateRecovery = time.Minute
	// minRateFactor is the part of the documented rate that is used at least.
	minRateFactor = 1.0 / 16
	// epsilon is what sums of fractions may be short of a whole token.
	epsilon = 1e-6
)

// bucket mirrors one of EC2's token buckets. It is full at first; what does not fit is
// lost. Where EC2 disagrees, because others use the account too, the rate is halved and
// comes back little by little. A bucket is not safe for concurrent use.
type bucket struct {
	name             string
	capacity, refill float64 // refill is in tokens a second

	level        float64   // below zero by what was taken in advance
	at           time.Time // when level was right
	rateFactor   float64   // the part of refill that is used, as of cut
	lastThrottle time.Time // when EC2 last disagreed
}

func newBucket(name string, limit Limit) *bucket {
	return &bucket{name: name, capacity: limit.Capacity, refill: limit.Refill, level: limit.Capacity, rateFactor: 1}
}

// rate is the refill that is counted on now, in tokens a second.
func (b *bucket) rate(now time.Time) float64 {
	return b.refill * b.rateShare(now)
}

func (b *bucket) rateShare(now time.Time) float64 {
	if b.rateFactor == 1 {
		return 1
	}
	return min(1, b.rateFactor+now.Sub(b.lastThrottle).Seconds()/rateRecovery.Seconds())
}

// advance brings the level up to now.
func (b *bucket) advance(now time.Time) {
	if !b.at.IsZero() && now.After(b.at) {
		b.level = min(b.capacity, b.level+now.Sub(b.at).Seconds()*b.rate(now))
	}
	if b.at.IsZero() || now.After(b.at) {
		b.at = now
	}
}

// until returns when the level will be n, or full if n does not fit.
func (b *bucket) until(now time.Time, n float64) time.Duration {
	b.advance(now)
	return b.timeToGain(now, min(n, b.capacity)-b.level)
}

// timeToGain returns how long it takes to gain so many tokens.
func (b *bucket) timeToGain(now time.Time, missing float64) time.Duration {
	if missing <= epsilon {
		return 0
	}
	return time.Duration(math.Ceil(missing / b.rate(now) * float64(time.Second)))
}

// take takes tokens, in advance if there are not enough, and returns when they will have
// been there.
func (b *bucket) take(now time.Time, n float64) (wait time.Duration) {
	wait = b.until(now, n)
	b.level -= n
	return wait
}

// give puts tokens back that EC2 did not take.
func (b *bucket) give(n float64) {
	b.level = min(b.capacity, b.level+n)
}

// onThrottle says that EC2 had fewer than n tokens when this bucket had n: by how many is a
// guess. The rate is halved, once in a while however many calls were on their way.
func (b *bucket) onThrottle(now time.Time, n, short float64) {
	b.advance(now)
	b.level = min(b.level, n-short)
	if now.Sub(b.lastThrottle) >= time.Second {
		b.rateFactor = max(minRateFactor, b.rateShare(now)/2)
		b.lastThrottle = now
	}
}
