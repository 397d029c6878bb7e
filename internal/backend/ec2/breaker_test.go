package ec2

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// outOfReach takes EC2 away until that is known. The last to notice was the start of an
// instance, one to two seconds ago.
func outOfReach(t *testing.T, d *distance, b *Backend) {
	t.Helper()
	d.set(refused)
	for range 4 {
		_ = execute(t.Context(), b, start(id(1)))[0].refusedAs(t)
		time.Sleep(time.Second)
	}
}

func TestOneUnreachableCallFailsNoOther(t *testing.T) {
	inBubble(t, "a connection that does not come about", func(t *testing.T) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}})}}
		b := connect(t, &endpoint{answer: d.answer})
		d.set(refused)
		if o := execute(t.Context(), b, start(id(1)))[0]; o.refusedAs(t).Reason != instance.ReasonBackendUnavailable {
			t.Error(o.err)
		}
		d.set(nil)
		if o := execute(t.Context(), b, start(id(2)))[0]; o.err != nil {
			t.Error(o.err)
		}
	})
	inBubble(t, "long ago", func(t *testing.T) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}})}}
		b := connect(t, &endpoint{answer: d.answer, latency: always(50 * time.Millisecond)})
		outOfReach(t, d, b)
		d.set(nil)
		time.Sleep(b.cfg.CallTimeout + openMargin)
		for i, o := range execute(t.Context(), b, start(id(1)), start(id(2))) {
			if o.err != nil {
				t.Errorf("caller %d: %v", i, o.err)
			}
		}
	})
	inBubble(t, "an answer is known to all at once", func(t *testing.T) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}}})}}
		e := &endpoint{answer: d.answer}
		b := connect(t, e)
		outOfReach(t, d, b)
		if n := len(e.of(instance.VerbStart)); n > 3 {
			t.Errorf("%d calls, although EC2 was known to be out of reach", n)
		}
		d.set(nil)
		if o := execute(t.Context(), b, start(id(1)))[0]; o.refusedAs(t).RetryAfter <= 0 {
			t.Error("the error has no RetryAfter")
		}
		if _, err := b.Describe(t.Context(), instance.DescribeQuery{All: true}); err != nil {
			t.Error(err)
		}
		if o := execute(t.Context(), b, start(id(1)))[0]; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestStaleFailuresAndShortDeadlinesDoNotOpenTheCircuit(t *testing.T) {
	setUp := func(t *testing.T) (*distance, *Backend) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}})}}
		return d, connect(t, &endpoint{answer: d.answer})
	}
	accepted := func(t *testing.T, b *Backend, n int) {
		t.Helper()
		if o := execute(t.Context(), b, start(id(n)))[0]; o.err != nil {
			t.Error(o.err)
		}
	}
	inBubble(t, "a call from before an answer", func(t *testing.T) {
		d, b := setUp(t)
		d.set(silent)
		ctx, cancel := context.WithCancel(t.Context())
		var comparing sync.WaitGroup
		defer comparing.Wait()
		defer cancel()
		comparing.Go(func() { _, _ = b.Describe(ctx, instance.DescribeQuery{All: true}) })
		time.Sleep(time.Second)
		d.set(nil)
		accepted(t, b, 1)
		// What the comparison asks again when its first call has failed is not answered
		// either.
		d.set(silent)
		time.Sleep(b.cfg.CallTimeout + openAfter)
		d.set(nil)
		accepted(t, b, 2)
	})
	inBubble(t, "calls whose caller leaves", func(t *testing.T) {
		d, b := setUp(t)
		d.set(silent)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := b.Describe(ctx, instance.DescribeQuery{IDs: []instance.ID{id(1)}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
		d.set(nil)
		accepted(t, b, 1)
	})
}

func TestCommandsFailAtOnceWhileAProbeHangs(t *testing.T) {
	inBubble(t, "for four minutes", func(t *testing.T) {
		const seconds = 240
		e := &endpoint{answer: func(ctx context.Context, _ call) (reply, error) { return reply{}, silent(ctx) }}
		b := connect(t, e)
		ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			for ctx.Err() == nil {
				_, _ = b.Describe(ctx, instance.DescribeQuery{All: true})
			}
		})
		var waited [seconds]bool
		for n := range seconds {
			all.Go(func() {
				asked := time.Now()
				_, _ = b.Execute(ctx, start(id(n)))
				waited[n] = time.Since(asked) > 0
			})
			pause(ctx, time.Second)
		}
		all.Wait()
		known := int((b.cfg.CallTimeout + openAfter) / time.Second)
		last := known
		for n := known + 1; n < seconds; n++ {
			if waited[n] && n-last < int(probeInterval/time.Second) {
				t.Errorf("who came after %d s waited, and so did one %d s before", n, n-last)
			}
			if waited[n] {
				last = n
			}
		}
		if last == known {
			t.Error("nothing was tried")
		}
	})
	inBubble(t, "also when the try comes late", func(t *testing.T) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}})}}
		b := connect(t, &endpoint{answer: d.answer})
		outOfReach(t, d, b)
		d.set(silent)
		time.Sleep(b.cfg.CallTimeout + openMargin - 4*time.Second)
		hanging := background(t.Context(), b, start(id(1)))
		time.Sleep(probeInterval - time.Second)
		began := time.Now()
		if o, took := execute(t.Context(), b, start(id(2)))[0], time.Since(began); o.refusedAs(t).OutcomeUnknown || took > 0 {
			t.Errorf("refused after %v: %v", took, o.err)
		}
		_ = hanging().refusedAs(t)
	})
}

func TestAProbeOpensOrClosesTheCircuit(t *testing.T) {
	setUp := func(t *testing.T) (*distance, *endpoint, *Backend) {
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: []sim.Spec{{ID: id(1)}}})}}
		e := &endpoint{answer: d.answer}
		b := connect(t, e)
		outOfReach(t, d, b)
		time.Sleep(probeInterval)
		return d, e, b
	}
	inBubble(t, "is not looked into if EC2 does not answer", func(t *testing.T) {
		d, e, b := setUp(t)
		d.set(silent)
		began := time.Now()
		o := execute(t.Context(), b, start(id(1)))[0]
		if took := time.Since(began); !o.refusedAs(t).OutcomeUnknown || took != b.cfg.CallTimeout {
			t.Errorf("refused after %v: %v", took, o.err)
		}
		if n := len(e.of(actionDescribe)); n > 0 {
			t.Errorf("EC2 was asked %d times", n)
		}
	})
	inBubble(t, "is looked into if its connection breaks", func(t *testing.T) {
		d, e, b := setUp(t)
		d.set(nil)
		e.answer = func(ctx context.Context, c call) (reply, error) {
			r, err := d.answer(ctx, c)
			if c.action != string(actionDescribe) {
				return reply{}, errLost
			}
			return r, err
		}
		if o := execute(t.Context(), b, start(id(1)))[0]; o.err != nil || o.result.Changes[0].Current != instance.StatePending {
			t.Errorf("it came to %+v", o)
		}
	})
}

func TestRejectedCallersRetryAtDifferentTimes(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		const callers = 20
		e := &endpoint{answer: func(ctx context.Context, _ call) (reply, error) { return reply{}, silent(ctx) }}
		b := connect(t, e)
		var hanging, waiting []func() outcome
		for n := range dispatch.MaxBatches {
			hanging = append(hanging, background(t.Context(), b, start(id(n))))
			time.Sleep(dispatch.SlowCallAfter)
		}
		for n := range callers {
			waiting = append(waiting, background(t.Context(), b, start(id(dispatch.MaxBatches+n))))
		}
		delays := make(map[time.Duration]bool)
		told := func(err *instance.Error) {
			if err.RetryAfter < retryUnavailable || err.RetryAfter > 2*probeInterval {
				t.Errorf("%v, to be tried again after %v", err, err.RetryAfter)
			}
			delays[err.RetryAfter] = true
		}
		for _, w := range waiting {
			told(w().refusedAs(t))
		}
		for range callers {
			told(execute(t.Context(), b, start(id(0)))[0].refusedAs(t))
		}
		if len(delays) < 2*callers-1 {
			t.Errorf("%d callers have %d delays", 2*callers, len(delays))
		}
		for _, h := range hanging {
			_ = h().refusedAs(t)
		}
	})
}

func TestQueuedRequestsFailOnceEC2IsUnreachable(t *testing.T) {
	inBubble(t, "behind calls that hang", func(t *testing.T) {
		var fleet []sim.Spec
		for n := range dispatch.MaxBatches + 1 {
			fleet = append(fleet, sim.Spec{ID: id(n)})
		}
		d := &distance{simulated: simulated{simulate(t, sim.Config{Fleet: fleet})}}
		b := connect(t, &endpoint{answer: d.answer})
		d.set(swallowed(dispatch.MaxBatches))
		var hanging []func() outcome
		for n := range dispatch.MaxBatches {
			hanging = append(hanging, background(t.Context(), b, start(id(n))))
			time.Sleep(dispatch.SlowCallAfter)
		}
		began := time.Now()
		waiting := background(t.Context(), b, start(id(dispatch.MaxBatches)))
		for range 2 {
			if _, err := b.Describe(t.Context(), instance.DescribeQuery{All: true}); err == nil {
				t.Error("EC2 is within reach")
			}
		}
		if o, took := waiting(), time.Since(began); o.refusedAs(t).Reason != instance.ReasonBackendUnavailable || o.refusedAs(t).OutcomeUnknown || took > 11*time.Second {
			t.Errorf("refused after %v: %v", took, o.err)
		}
		for _, h := range hanging {
			if e := h().refusedAs(t); e.Kind != instance.KindUnavailable || !e.OutcomeUnknown {
				t.Errorf("what was sent ended with %v", e)
			}
		}
	})
}
