package ec2

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func by(principal string, cmd instance.Command) instance.Command {
	cmd.Principal = principal
	return cmd
}

// timed runs a command and returns how long it took, when it is asked for.
func timed(ctx context.Context, b *Backend, cmd instance.Command) func() (time.Duration, error) {
	began, took := time.Now(), time.Duration(0)
	done := make(chan error, 1)
	go func() {
		_, err := b.Execute(ctx, cmd)
		took = time.Since(began)
		done <- err
	}()
	synctest.Wait()
	return func() (time.Duration, error) { err := <-done; return took, err }
}

func TestThousandCallersTakeFewCalls(t *testing.T) {
	inBubble(t, "under EC2's documented buckets", func(t *testing.T) {
		ec2 := simulate(t, sim.Config{Speed: 1, Throttle: true, Fleet: []sim.Spec{{Count: 1000}}})
		p, err := ec2.Describe(t.Context(), instance.DescribeQuery{All: true})
		if err != nil {
			t.Fatal(err)
		}
		e := &endpoint{answer: simulated{ec2}.answer, latency: always(300 * time.Millisecond)}
		b := connect(t, e)
		began := time.Now()
		var cmds []instance.Command
		for _, inst := range p.Instances {
			cmds = append(cmds, by(string(inst.ID), start(inst.ID)))
		}
		for _, o := range execute(t.Context(), b, cmds...) {
			if o.err != nil {
				t.Fatal(o.err)
			}
		}
		if calls, took := len(e.of(instance.VerbStart)), time.Since(began); calls > 3 || took > time.Second {
			t.Errorf("%d calls, %v", calls, took)
		}
	})
}

func TestPrincipalsShareFairly(t *testing.T) {
	inBubble(t, "one that asks for ten thousand does not delay one that asks for one by more than its share", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer, latency: always(100 * time.Millisecond)})
		ctx, cancel := context.WithCancel(t.Context())
		var greedy []func() (time.Duration, error)
		for n := range 10 {
			greedy = append(greedy, timed(ctx, b, by("greedy", start(ids(n*1000, n*1000+1000)...))))
		}
		time.Sleep(10 * time.Second)
		for n := range 20 {
			took, err := timed(t.Context(), b, by("modest", start(id(100_000+n))))()
			// Half of two tokens a second is one in a second.
			if err != nil || took > 2500*time.Millisecond {
				t.Errorf("the modest one waited %v: %v", took, err)
			}
		}
		cancel()
		for _, g := range greedy {
			_, _ = g()
		}
	})
	inBubble(t, "a large whole call is served although small ones keep coming", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer, latency: always(50 * time.Millisecond)})
		if _, err := timed(t.Context(), b, by("first", start(ids(0, 1000)...)))(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		large := timed(t.Context(), b, by("large", start(ids(1000, 1200)...)))
		var small sync.WaitGroup
		small.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				small.Go(func() { _, _ = b.Execute(ctx, by(fmt.Sprint("small", n%3), start(id(10_000+n)))) })
				time.Sleep(200 * time.Millisecond) // more than the bucket gains
			}
		})
		took, err := large()
		// A quarter of two tokens a second makes 200 in 400 seconds.
		if err != nil || took > 420*time.Second {
			t.Errorf("the large call waited %v: %v", took, err)
		}
		cancel()
		small.Wait()
	})
	inBubble(t, "two large calls that do not fit together are served one after the other", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer, latency: always(50 * time.Millisecond)})
		one := timed(t.Context(), b, by("a", start(ids(0, 1000)...)))
		two := timed(t.Context(), b, by("b", start(ids(1000, 2000)...)))
		three := timed(t.Context(), b, by("c", start(ids(2000, 3000)...)))
		for _, wait := range []func() (time.Duration, error){one, two, three} {
			if took, err := wait(); err != nil || took > 1010*time.Second {
				t.Errorf("waited %v: %v", took, err)
			}
		}
	})
	inBubble(t, "dry runs of one do not use up the calls of others", func(t *testing.T) {
		b := connect(t, &endpoint{latency: always(50 * time.Millisecond), answer: func(ctx context.Context, c call) (reply, error) {
			if c.form.Get("DryRun") == "true" {
				return refusal(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."), nil
			}
			return (&fleet{}).answer(ctx, c)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var dry []func() (time.Duration, error)
		for n := range 200 {
			cmd := by("curious", start(id(n)))
			cmd.DryRun = true
			dry = append(dry, timed(ctx, b, cmd))
		}
		if took, err := timed(t.Context(), b, by("other", start(id(1000))))(); err != nil || took > 1600*time.Millisecond {
			t.Errorf("waited %v: %v", took, err)
		}
		cancel()
		for _, d := range dry {
			_, _ = d()
		}
	})
}

func TestRebootsLeaveRoomForStops(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		b := connect(t, &endpoint{answer: func(_ context.Context, c call) (reply, error) {
			switch c.action {
			case "StopInstances":
				return changed(c.action, []instance.StateChange{{ID: c.ids[0], Previous: instance.StateRunning, Current: instance.StateStopping}}), nil
			case "RebootInstances":
				return reply{200, document("<RebootInstancesResponse><return>true</return></RebootInstancesResponse>")}, nil
			}
			return described(nil, ""), nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // less than a token takes
		defer cancel()
		rebooted := 0
		for n := range 60 {
			if _, err := b.Execute(ctx, instance.Command{Verb: instance.VerbReboot, IDs: ids(n, n+1)}); err == nil {
				rebooted++
			}
		}
		if rebooted != 40 {
			t.Errorf("%d reboots at once, want 40 of the bucket's 50", rebooted)
		}
		for n := range 10 {
			if took, err := timed(t.Context(), b, instance.Command{Verb: instance.VerbStop, IDs: ids(n, n+1)})(); err != nil || took != 0 {
				t.Errorf("stop %d waited %v: %v", n, took, err)
			}
		}
	})
}

func TestARequestThatCannotBeServedInTimeFailsAtOnce(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		_, err := b.Execute(ctx, start(ids(1000, 1100)...))
		e := outcome{err: err}.refusedAs(t)
		if time.Since(began) != 0 {
			t.Errorf("it took %v", time.Since(began))
		}
		if e.Kind != instance.KindExhausted || e.Reason != instance.ReasonRequestLimitExceeded || e.RetryAfter != 50*time.Second || e.OutcomeUnknown ||
			!strings.Contains(e.Message, "its instance bucket 0 of 1000 and 2 a second") {
			t.Errorf("error is %+v", e)
		}
		if took, err := timed(ctx, b, start(ids(1000, 1040)...))(); err != nil || took != 20*time.Second {
			t.Errorf("what can be served in time took %v: %v", took, err)
		}
	})
}

func TestBucketsAreReadable(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer}, func(c *Config) {
			c.Limits.Start.Requests = &Limit{Capacity: 20, Refill: 8}
		})
		if _, err := b.Execute(t.Context(), start(ids(0, 300)...)); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, bucket := range b.Buckets() {
			names = append(names, bucket.Name)
			switch bucket.Name {
			case "requests of StartInstances":
				if bucket.Level != 19 || bucket.Capacity != 20 || bucket.Refill != 8 {
					t.Errorf("%+v", bucket)
				}
			case "instances of StartInstances":
				if bucket.Level != 700 || bucket.Capacity != 1000 || bucket.Refill != 2 {
					t.Errorf("%+v", bucket)
				}
			}
		}
		if len(names) != 7 {
			t.Errorf("buckets are %v", names)
		}
	})
}
