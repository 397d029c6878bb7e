package dispatch

import (
	"testing"
	"time"
)

func TestABucketMirrorsEC2s(t *testing.T) {
	now := time.Unix(1000, 0)
	b := NewBucket("b", Limit{Capacity: 5, Refill: 2})
	for n := range 5 {
		if wait := b.Take(now, 1); wait != 0 {
			t.Fatalf("call %d waits %v", n, wait)
		}
	}
	if wait := b.Take(now, 1); wait != 500*time.Millisecond {
		t.Errorf("the sixth call waits %v, want 500ms", wait)
	}
	if wait := b.Take(now, 1); wait != time.Second {
		t.Errorf("the seventh call waits %v, want 1s", wait)
	}
	if wait := b.until(now.Add(time.Second), 1); wait != 500*time.Millisecond {
		t.Errorf("a second later an eighth call waits %v, want 500ms", wait)
	}
	if b.advance(now.Add(time.Hour)); b.level != 5 {
		t.Errorf("an hour later there are %v tokens, want 5", b.level)
	}
	if wait := b.until(now.Add(time.Hour), 50); wait != 0 {
		t.Errorf("more than fits waits %v for a full bucket", wait)
	}
}

func TestTheRateIsHalvedWhenEC2DisagreesAndRecovers(t *testing.T) {
	now := time.Unix(1000, 0)
	b := NewBucket("b", Limit{Capacity: 100, Refill: 20})
	b.advance(now)
	b.OnThrottle(now, 1, 1)
	if b.level != 0 || b.rate(now) != 10 {
		t.Errorf("level %v, rate %v; want 0 and 10", b.level, b.rate(now))
	}
	b.OnThrottle(now.Add(time.Millisecond), 1, 1)
	if rate := b.rate(now); rate != 10 {
		t.Errorf("rate is %v after calls that were on their way; want 10", rate)
	}
	if rate := b.rate(now.Add(rateRecovery / 4)); rate != 15 {
		t.Errorf("rate is %v after a quarter of the recovery; want 15", rate)
	}
	if rate := b.rate(now.Add(rateRecovery)); rate != 20 {
		t.Errorf("rate is %v in the end; want 20", rate)
	}
	for n := range 100 {
		b.OnThrottle(now.Add(time.Duration(n+1)*time.Second), 1, 1)
	}
	if rate := b.rate(now.Add(100 * time.Second)); rate != 20*minRateFactor {
		t.Errorf("rate is %v when EC2 goes on; want %v", rate, 20*minRateFactor)
	}
}
