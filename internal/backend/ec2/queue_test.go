package ec2

import (
	"context"
	"testing"
	"time"
)

// TestRequestsBehindOneThatLeavesAreSent has a caller that is affordable wait behind one
// that is not, of the same principal.
func TestRequestsBehindOneThatLeavesAreSent(t *testing.T) {
	inBubble(t, "at once", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		large := background(ctx, b, start(ids(1000, 1500)...))
		time.Sleep(10 * time.Second)
		small := timed(t.Context(), b, start(ids(2000, 2010)...))
		time.Sleep(5 * time.Second)
		cancel()
		if o := large(); o.err == nil {
			t.Error("the large one was served")
		}
		if took, err := small(); err != nil || took != 5*time.Second {
			t.Errorf("who was behind waited %v: %v", took, err)
		}
	})
	inBubble(t, "when it has enough", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		large := background(ctx, b, start(ids(1000, 1500)...))
		small := timed(t.Context(), b, start(ids(2000, 2010)...))
		cancel()
		_ = large()
		if took, err := small(); err != nil || took != 5*time.Second {
			t.Errorf("who was behind waited %v: %v", took, err)
		}
	})
	inBubble(t, "with the tokens of another principal", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		one := background(ctx, b, by("one", start(ids(1000, 1500)...)))
		other := timed(t.Context(), b, by("other", start(ids(2000, 2020)...)))
		time.Sleep(10 * time.Second)
		cancel()
		_ = one()
		if took, err := other(); err != nil || took != 10*time.Second {
			t.Errorf("the other one waited %v: %v", took, err)
		}
	})
}
