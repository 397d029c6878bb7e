package ec2

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// always takes the same time for every call.
func always(d time.Duration) func(call) time.Duration {
	return func(call) time.Duration { return d }
}

// background starts a command and returns its outcome when it is asked for, once it has
// gone as far as it goes by itself.
func background(ctx context.Context, b *Backend, cmd instance.Command) func() outcome {
	done := make(chan outcome, 1)
	go func() {
		result, err := b.Execute(ctx, cmd)
		done <- outcome{result, err}
	}()
	synctest.Wait()
	return func() outcome { return <-done }
}

func TestALoneCallGoesOutAtOnce(t *testing.T) {
	inBubble(t, "a lone call goes out at once", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer}
		b := connect(t, e)
		began := time.Now()
		if _, err := b.Execute(t.Context(), start(id(1))); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
	})
	inBubble(t, "what comes while a call is in flight goes out together, as soon as that is answered", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(300 * time.Millisecond)}
		b := connect(t, e)
		first := background(t.Context(), b, start(id(0)))
		time.Sleep(100 * time.Millisecond)
		var others []func() outcome
		for n := range 50 {
			others = append(others, background(t.Context(), b, start(id(n+1))))
		}
		first()
		for _, other := range others {
			if o := other(); o.err != nil || o.result.Changes[0].Previous != instance.StateStopped {
				t.Fatalf("outcome is %+v", o)
			}
		}
		calls := e.of(instance.VerbStart)
		if len(calls) != 2 || len(calls[0].ids) != 1 || len(calls[1].ids) != 50 {
			t.Fatalf("%d calls, want one for 1 instance and one for 50", len(calls))
		}
		if gap := calls[1].at.Sub(calls[0].at); gap != 300*time.Millisecond {
			t.Errorf("the second call went out %v after the first, want 300ms", gap)
		}
	})
	inBubble(t, "a call that hangs does not hold up the next for more than a second", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: func(c call) time.Duration {
			if slices.Contains(c.ids, id(0)) {
				return 20 * time.Second
			}
			return 0
		}}
		b := connect(t, e)
		first := background(t.Context(), b, start(id(0)))
		began := time.Now()
		if _, err := b.Execute(t.Context(), start(id(1))); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > dispatch.SlowCallAfter {
			t.Errorf("the second took %v", took)
		}
		if o := first(); o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestCallersShareIDsAndTheFirstSeesStopped(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(time.Millisecond)}
		b := connect(t, e)
		lead := background(t.Context(), b, start(id(99)))
		var others []func() outcome
		for range 5 {
			others = append(others, background(t.Context(), b, start(id(1), id(2))))
		}
		others = append(others, background(t.Context(), b, each(start(id(2), id(3)))))
		lead()
		for n, other := range others {
			o := other()
			if o.err != nil || len(o.result.Changes) != 2 {
				t.Fatalf("outcome is %+v", o)
			}
			want := instance.StatePending
			if n == 0 {
				want = instance.StateStopped
			}
			if o.result.Changes[0].Previous != want || o.result.Changes[0].Current != instance.StatePending {
				t.Errorf("caller %d saw %s -> %s", n, o.result.Changes[0].Previous, o.result.Changes[0].Current)
			}
		}
		if calls := e.of(instance.VerbStart); len(calls) != 2 || len(calls[1].ids) != 3 {
			t.Errorf("calls are %v, want a second one for 3 instances", calls)
		}
	})
}

func TestDifferentOptionsDoNotShareABatch(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		e := &endpoint{latency: always(time.Millisecond), answer: func(_ context.Context, c call) (reply, error) {
			if c.form.Get("DryRun") == "true" {
				return refusal(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."), nil
			}
			var changes []instance.StateChange
			for _, id := range c.ids {
				changes = append(changes, instance.StateChange{ID: id, Previous: instance.StateRunning, Current: instance.StateStopping})
			}
			return changed(c.action, changes), nil
		}}
		b := connect(t, e)
		stop := func(n int, adjust func(*instance.Command)) instance.Command {
			cmd := instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id(n)}}
			adjust(&cmd)
			return cmd
		}
		plain := func(*instance.Command) {}
		force := func(cmd *instance.Command) { cmd.Force = true }
		hibernate := func(cmd *instance.Command) { cmd.Hibernate = true }
		skip := func(cmd *instance.Command) { cmd.SkipOSShutdown = true }
		dry := func(cmd *instance.Command) { cmd.DryRun = true }
		var cmds []instance.Command
		for n, adjust := range []func(*instance.Command){plain, plain, plain, force, force, hibernate, skip, dry, dry} {
			cmds = append(cmds, stop(n, adjust))
		}
		for n, o := range execute(t.Context(), b, cmds...) {
			if cmds[n].DryRun {
				if e := o.refusedAs(t); e.Kind != instance.KindDryRun {
					t.Errorf("dry run ends in %v", e)
				}
			} else if o.err != nil {
				t.Error(o.err)
			}
		}
		for _, c := range e.of(instance.VerbStop) {
			for _, id := range c.ids {
				i := slices.IndexFunc(cmds, func(cmd instance.Command) bool { return cmd.IDs[0] == id })
				cmd := cmds[i]
				if (c.form.Get("Force") == "true") != cmd.Force || (c.form.Get("Hibernate") == "true") != cmd.Hibernate ||
					(c.form.Get("SkipOsShutdown") == "true") != cmd.SkipOSShutdown || (c.form.Get("DryRun") == "true") != cmd.DryRun {
					t.Errorf("%+v travelled in %v", cmd, c.form)
				}
				if cmd.DryRun && len(c.ids) != 1 {
					t.Errorf("a dry run travelled with %v", c.ids)
				}
			}
		}
	})
}

func TestACallerThatLeavesAffectsNoOther(t *testing.T) {
	inBubble(t, "before its batch goes out", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(time.Second / 2)}
		b := connect(t, e)
		lead := background(t.Context(), b, start(id(0)))
		ctx, cancel := context.WithCancel(t.Context())
		leaving := background(ctx, b, start(id(1), id(2)))
		staying := background(t.Context(), b, start(id(2), id(3)))
		cancel()
		if o := leaving(); !errors.Is(o.err, context.Canceled) {
			t.Errorf("it left with %+v", o)
		}
		lead()
		if o := staying(); o.err != nil || len(o.result.Changes) != 2 || o.result.Changes[0].Previous != instance.StateStopped {
			t.Errorf("who stayed got %+v", o)
		}
		if calls := e.of(instance.VerbStart); len(calls) != 2 || !slices.Equal(calls[1].ids, []instance.ID{id(2), id(3)}) {
			t.Errorf("calls are %v", calls)
		}
	})
	inBubble(t, "while its batch is in flight", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(time.Second / 2)}
		b := connect(t, e)
		ctx, cancel := context.WithCancel(t.Context())
		leaving := background(ctx, b, start(id(1)))
		cancel()
		if o := leaving(); !errors.Is(o.err, context.Canceled) {
			t.Errorf("it left with %+v", o)
		}
		if o := background(t.Context(), b, start(id(1)))(); o.err != nil || o.result.Changes[0].Previous != instance.StatePending {
			t.Errorf("the next got %+v; the first call should have been carried out", o)
		}
	})
	inBubble(t, "while its batch waits for a throttle", func(t *testing.T) {
		throttle := true
		f := &fleet{refuse: func(c call) (reply, bool) {
			if throttle {
				throttle = false
				return refusal(503, "RequestLimitExceeded", "Request limit exceeded."), true
			}
			return reply{}, false
		}}
		e := &endpoint{answer: f.answer, latency: always(300 * time.Millisecond)}
		b := connect(t, e)
		lead := background(t.Context(), b, start(id(9)))
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		leaving := background(ctx, b, start(id(1)))
		staying := background(t.Context(), b, start(id(2)))
		_ = lead
		if o := leaving(); o.err == nil {
			t.Errorf("it left with %+v", o)
		}
		if o := staying(); o.err != nil {
			t.Error(o.err)
		}
		lead()
		for _, c := range e.of(instance.VerbStart) {
			if slices.Contains(c.ids, id(1)) {
				t.Errorf("its instance went out: %v", c.ids)
			}
		}
	})
}

func TestNoCallIsForMoreInstancesThanEC2Takes(t *testing.T) {
	inBubble(t, "a whole call travels in one, a per-instance call may be divided", func(t *testing.T) {
		f := &fleet{refuse: func(c call) (reply, bool) {
			if c.action == "StartInstances" && len(c.ids) > 300 {
				return refusal(400, "ResourceCountExceeded", "You have exceeded the number of resources allowed in a single call of this type"), true
			}
			return reply{}, false
		}}
		e := &endpoint{answer: f.answer}
		b := connect(t, e)
		if _, err := b.Execute(t.Context(), each(start(ids(0, 900)...))); err != nil {
			t.Fatal(err)
		}
		o := execute(t.Context(), b, start(ids(1000, 1400)...))[0]
		if e := o.refusedAs(t); e.Kind != instance.KindInvalid || e.Code != instance.CodeResourceCountExceeded {
			t.Errorf("a whole call that is too large ends in %v", e)
		}
		if got := len(f.started); got != 900 {
			t.Errorf("%d started, want 900", got)
		}
		if calls := e.of(instance.VerbStart); len(calls) != 1+1+4+1 { // 900, 450, 4 of 225; 400
			t.Errorf("%d calls", len(calls))
			for _, c := range calls {
				t.Log(len(c.ids))
			}
		}
	})
	inBubble(t, "the calls of many callers are divided at a thousand", func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(time.Millisecond)}
		b := connect(t, e, func(c *Config) { c.Limits.Start.Instances = &Limit{Capacity: 1e6, Refill: 1e6} })
		cmds := []instance.Command{start(id(0))}
		for n := range 30 {
			cmds = append(cmds, start(ids(1+n*100, 101+n*100)...))
		}
		for _, o := range execute(t.Context(), b, cmds...) {
			if o.err != nil {
				t.Fatal(o.err)
			}
		}
		calls := e.of(instance.VerbStart)
		for _, c := range calls {
			if len(c.ids) > 1000 {
				t.Errorf("a call for %d", len(c.ids))
			}
		}
		if len(calls) > 5 {
			t.Errorf("%d calls for 3001 instances", len(calls))
		}
	})
}
