package dispatch

import (
	"math"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// rateRecovery is how long it takes to return to the full rate after an unexpected throttle.
	rateRecovery = time.Minute
	// minRateFactor is the smallest part of the documented rate that is counted on.
	minRateFactor = 1.0 / 16
	// epsilon is the rounding error allowed in a whole token.
	epsilon = 1e-6
)

// Limit is a token bucket: it holds at most Capacity tokens and gains Refill a second.
type Limit struct {
	Capacity float64 `json:"capacity"`
	Refill   float64 `json:"refill"`
}

// Bucket mirrors one of EC2's token buckets. It starts full, and overflows. When EC2 throttles
// although tokens should have been left, because others use the account too, the rate is halved
// and recovers gradually. A Bucket is not safe for concurrent use.
type Bucket struct {
	name             string
	capacity, refill float64 // refill is in tokens a second

	level        float64   // negative while tokens are taken in advance
	at           time.Time // when level was right
	rateFactor   float64   // the part of refill that was counted on at lastThrottle
	lastThrottle time.Time // when the rate was last halved
}

// NewBucket returns a full bucket. Its name is for people.
func NewBucket(name string, limit Limit) *Bucket {
	return &Bucket{name: name, capacity: limit.Capacity, refill: limit.Refill, level: limit.Capacity, rateFactor: 1}
}

// rate is how many tokens a second the bucket gains now.
func (b *Bucket) rate(now time.Time) float64 {
	return b.refill * b.rateShare(now)
}

func (b *Bucket) rateShare(now time.Time) float64 {
	if b.rateFactor == 1 {
		return 1
	}
	return min(1, b.rateFactor+now.Sub(b.lastThrottle).Seconds()/rateRecovery.Seconds())
}

// advance brings the level up to now.
func (b *Bucket) advance(now time.Time) {
	if !b.at.IsZero() && now.After(b.at) {
		b.level = min(b.capacity, b.level+now.Sub(b.at).Seconds()*b.rate(now))
	}
	if b.at.IsZero() || now.After(b.at) {
		b.at = now
	}
}

// until returns how long it takes to reach a level of n, or a full bucket if n does not fit.
func (b *Bucket) until(now time.Time, n float64) time.Duration {
	b.advance(now)
	return b.timeToGain(now, min(n, b.capacity)-b.level)
}

// timeToGain returns how long it takes to gain the missing tokens.
func (b *Bucket) timeToGain(now time.Time, missing float64) time.Duration {
	if missing <= epsilon {
		return 0
	}
	return time.Duration(math.Ceil(missing / b.rate(now) * float64(time.Second)))
}

// Take takes tokens, in advance if need be, and returns how long to wait until they would have
// been there.
func (b *Bucket) Take(now time.Time, n float64) (wait time.Duration) {
	wait = b.until(now, n)
	b.level -= n
	return wait
}

// Give returns tokens that EC2 did not use.
func (b *Bucket) Give(n float64) {
	b.level = min(b.capacity, b.level+n)
}

// OnThrottle corrects the bucket after EC2 throttled a call for n tokens: EC2 was short of about
// that many. The rate is halved at most once a second, however many calls were in flight.
func (b *Bucket) OnThrottle(now time.Time, n, short float64) {
	b.advance(now)
	b.level = min(b.level, n-short)
	if now.Sub(b.lastThrottle) >= time.Second {
		b.rateFactor = max(minRateFactor, b.rateShare(now)/2)
		b.lastThrottle = now
	}
}

// Status returns the level and the rate as of now.
func (b *Bucket) Status(now time.Time) instance.TokenBucket {
	b.advance(now)
	return instance.TokenBucket{Name: b.name, Level: b.level, Capacity: b.capacity, Refill: b.rate(now)}
}
