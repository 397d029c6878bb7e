package ec2

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

const insufficientCapacity = "We currently do not have sufficient t3.micro capacity in the Availability Zone you requested (us-east-1a)."

// crowded is a fleet with room for so many starts.
func crowded(room int, inPart bool) *fleet {
	f := &fleet{}
	f.refuse = func(c call) (reply, bool) {
		if c.action != "StartInstances" {
			return reply{}, false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		left := room - len(f.started)
		idle := slices.DeleteFunc(slices.Clone(c.ids), func(id instance.ID) bool { _, on := f.started[id]; return on })
		if len(idle) <= left {
			return reply{}, false
		}
		if inPart {
			f.startLocked(idle[:left])
		}
		return refusal(500, "InsufficientInstanceCapacity", insufficientCapacity), true
	}
	return f
}

func TestCapacityIsFoundByHalving(t *testing.T) {
	for _, room := range []int{0, 1, 7, 64, 127, 199} {
		for _, inPart := range []bool{false, true} {
			inBubble(t, fmt.Sprintf("room for %d of 200, in part %v", room, inPart), func(t *testing.T) {
				f := crowded(room, inPart)
				e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
				b := connect(t, e)
				var cmds []instance.Command
				for i := range 200 {
					cmds = append(cmds, start(id(i)))
				}
				starting := 0
				for _, o := range execute(t.Context(), b, cmds...) {
					if o.err == nil {
						starting++
						if c := o.result.Changes[0]; c.Previous != instance.StateStopped || c.Current != instance.StatePending {
							t.Errorf("change is %+v", c)
						}
						continue
					}
					if e := o.refusedAs(t); e.Kind != instance.KindExhausted || e.Code != instance.CodeInsufficientCapacity || e.Message != insufficientCapacity {
						t.Errorf("refused with %v", e)
					}
				}
				if starting != room || len(f.started) != room {
					t.Errorf("%d callers were answered, %d instances started; want %d", starting, len(f.started), room)
				}
				if calls := len(e.of(instance.VerbStart)); calls > 14 {
					t.Errorf("%d calls", calls)
				}
			})
		}
	}
}

func TestAWholeCallStartedInPartReportsWhatStarts(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		f := crowded(2, true)
		b := connect(t, &endpoint{answer: f.answer, latency: always(time.Millisecond)})
		o := execute(t.Context(), b, start(ids(0, 3)...))[0]
		if e := o.refusedAs(t); e.Code != instance.CodeInsufficientCapacity {
			t.Errorf("error is %v", e)
		}
		if len(o.result.Changes) != 2 || o.result.Changes[0].ID != id(0) || o.result.Changes[0].Previous != instance.StateStopped {
			t.Errorf("changes are %+v", o.result.Changes)
		}
	})
}

// The first of three callers wants an instance for which there is no room, and which
// somebody terminates before it is tried again, by itself: that tells nothing of the room
// for the others.
func TestInstancesRejectedForTheirStateUseNoCapacity(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		f := &fleet{types: map[instance.ID]string{id(0): "p4d.24xlarge"}}
		f.refuse = func(c call) (reply, bool) {
			switch {
			case c.action != "StartInstances" || !slices.Contains(c.ids, id(0)):
				return reply{}, false
			case len(c.ids) > 1:
				return refusal(500, "InsufficientInstanceCapacity", "No room for p4d.24xlarge."), true
			}
			return refusal(400, "IncorrectInstanceState", "The instance '"+string(id(0))+"' is not in a state from which it can be started."), true
		}
		outcomes := execute(t.Context(), connect(t, &endpoint{answer: f.answer, latency: always(time.Millisecond)}), start(id(3)), start(id(0)), start(id(1)), start(id(2)))
		if e := outcomes[1].refusedAs(t); e.Code != instance.CodeIncorrectInstanceState {
			t.Errorf("the first is refused with %v", e)
		}
		for _, o := range outcomes[2:] {
			if o.err != nil {
				t.Errorf("one for whom there is room is refused with %v", o.err)
			}
		}
	})
}

// An instance that is no longer stopped when it is looked at, and was not started by the
// call, leaves open for what there was no room.
func TestChangesByOthersAreNotTakenForMissingCapacity(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		gone := false
		f := &fleet{types: map[instance.ID]string{id(0): "p4d.24xlarge"}}
		e := &endpoint{latency: always(time.Millisecond), answer: func(ctx context.Context, c call) (reply, error) {
			switch {
			case c.action == "StartInstances" && slices.Contains(c.ids, id(0)):
				gone = true
				return refusal(500, "InsufficientInstanceCapacity", "No room for p4d.24xlarge."), nil
			case c.action == "DescribeInstances" && gone && slices.Contains(c.ids, id(0)):
				return described([]*instance.Instance{
					{ID: id(0), State: instance.StateTerminated, Type: "p4d.24xlarge", AvailabilityZone: "us-east-1a"},
					{ID: id(1), State: instance.StateStopped, Type: "t3.micro", AvailabilityZone: "us-east-1a"},
				}, ""), nil
			}
			return f.answer(ctx, c)
		}}
		b := connect(t, e)
		if err := b.Restore([]*instance.Instance{{ID: id(0), State: instance.StateStopped}, {ID: id(1), State: instance.StateStopped}}); err != nil {
			t.Fatal(err)
		}
		outcomes := execute(t.Context(), b, start(id(3)), start(id(0)), start(id(1)))
		if o := outcomes[2]; o.err != nil {
			t.Errorf("one for whom there is room is refused with %v", o.err)
		}
	})
}

func TestCapacityIsTriedByTypeAndZone(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		f := &fleet{types: map[instance.ID]string{}}
		var cmds []instance.Command
		for i := range 100 {
			if i%2 == 0 {
				f.types[id(i)] = "p4d.24xlarge"
			}
			cmds = append(cmds, start(id(i)))
		}
		cmds = append(cmds, start(id(2), id(3)), each(start(id(4), id(5))))
		f.refuse = func(c call) (reply, bool) {
			return refusal(500, "InsufficientInstanceCapacity", "No room for p4d.24xlarge."),
				c.action == "StartInstances" && slices.ContainsFunc(c.ids, func(id instance.ID) bool { return f.types[id] != "" })
		}
		e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
		outcomes := execute(t.Context(), connect(t, e), cmds...)
		for i, o := range outcomes[:100] {
			if (o.err != nil) != (i%2 == 0) {
				t.Errorf("caller %d got %+v", i, o)
			}
		}
		if o := outcomes[100]; o.err == nil {
			t.Errorf("a whole call over both pools got %+v", o)
		}
		if o := outcomes[101]; o.err != nil || len(o.result.Changes) != 1 || len(o.result.Failures) != 1 {
			t.Errorf("a per-instance call over both pools got %+v", o)
		}
		if calls := len(e.of(instance.VerbStart)); calls > 12 {
			t.Errorf("%d calls", calls)
		}
	})
}

// TestLostOutcomesAreLookedUp loses the answer to a call that was carried out,
// or not.
func TestLostOutcomesAreLookedUp(t *testing.T) {
	type loss struct {
		name  string
		reply reply
		err   error
	}
	losses := []loss{
		{"connection reset", reply{}, errLost},
		{"500", refusal(500, "InternalError", "An internal error has occurred"), nil},
		{"503", refusal(503, "Unavailable", "The server is overloaded and can't handle the request."), nil},
		{"no XML", reply{200, "<html>"}, nil},
		{"502 of a proxy", reply{502, "<html>Bad Gateway</html>"}, nil},
	}
	for _, l := range losses {
		for _, done := range []bool{false, true} {
			inBubble(t, fmt.Sprintf("%s, carried out %v", l.name, done), func(t *testing.T) {
				f := &fleet{}
				lost := false
				e := &endpoint{latency: always(time.Millisecond), answer: func(ctx context.Context, c call) (reply, error) {
					if c.action == "StartInstances" && len(c.ids) > 1 && !lost {
						lost = true
						if done {
							f.start(c.ids)
						}
						return l.reply, l.err
					}
					return f.answer(ctx, c)
				}}
				outcomes := execute(t.Context(), connect(t, e), start(id(9)), start(id(1)), start(id(1)), start(id(2), id(3)))
				for n, o := range outcomes {
					want := instance.StateStopped
					if n == 2 {
						want = instance.StatePending
					}
					if o.err != nil || o.result.Changes[0].Previous != want || o.result.Changes[0].Current != instance.StatePending {
						t.Errorf("caller %d got %+v", n, o)
					}
				}
				want := 3
				if done {
					want = 2
				}
				if calls := len(e.of(instance.VerbStart)); calls != want {
					t.Errorf("%d calls, want %d", calls, want)
				}
			})
		}
	}
	inBubble(t, "what another caller was told of is not taken for one's own", func(t *testing.T) {
		f := &fleet{}
		e := &endpoint{}
		lose := false
		e.answer = func(ctx context.Context, c call) (reply, error) {
			if lose && c.action == "StartInstances" {
				lose = false
				return reply{}, errLost
			}
			return f.answer(ctx, c)
		}
		b := connect(t, e)
		if o := execute(t.Context(), b, start(id(1)))[0]; o.err != nil {
			t.Fatal(o.err)
		}
		time.Sleep(10 * time.Millisecond)
		lose = true
		if o := execute(t.Context(), b, start(id(1)))[0]; o.err != nil || o.result.Changes[0].Previous != instance.StatePending {
			t.Errorf("the second caller got %+v", o)
		}
	})
	inBubble(t, "EC2 never says: after some attempts the callers are told that the outcome is unknown", func(t *testing.T) {
		f := &fleet{refuse: func(c call) (reply, bool) {
			return refusal(500, "InternalError", "An internal error has occurred"), c.action == "StartInstances"
		}}
		e := &endpoint{answer: f.answer}
		o := execute(t.Context(), connect(t, e), start(id(1)))[0]
		if e := o.refusedAs(t); e.Kind != instance.KindUnavailable || !e.OutcomeUnknown || e.Message != "An internal error has occurred" {
			t.Errorf("error is %+v", e)
		}
		if calls := len(e.of(instance.VerbStart)); calls != maxUnknownAttempts {
			t.Errorf("%d calls", calls)
		}
	})
	inBubble(t, "a reboot is not repeated", func(t *testing.T) {
		e := &endpoint{answer: func(context.Context, call) (reply, error) { return reply{}, errLost }}
		o := execute(t.Context(), connect(t, e), instance.Command{Verb: instance.VerbReboot, IDs: ids(1, 2)})[0]
		if e := o.refusedAs(t); !e.OutcomeUnknown {
			t.Errorf("error is %+v", e)
		}
		if calls := len(e.of(instance.VerbReboot)); calls != 1 {
			t.Errorf("%d calls", calls)
		}
	})
	inBubble(t, "a call that takes too long", func(t *testing.T) {
		f := &fleet{}
		e := &endpoint{answer: f.answer}
		e.latency = func(c call) time.Duration {
			if c.action == "StartInstances" && len(e.of(instance.VerbStart)) == 1 {
				return time.Hour
			}
			return 0
		}
		b := connect(t, e, func(c *Config) { c.CallTimeout = 3 * time.Second })
		began := time.Now()
		if o := execute(t.Context(), b, start(id(1)))[0]; o.err != nil {
			t.Errorf("outcome is %+v", o)
		}
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestACapacitySearchEnds(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		// Everything that is started of the first call leaves two calls short for good.
		f := crowded(2, true)
		e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
		b := connect(t, e)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, o := range execute(ctx, b, start(id(9)), start(id(1), id(3)), start(id(2), id(4)), start(id(3), id(5))) {
			if e, ok := o.err.(*instance.Error); o.err != nil && (!ok || e.Code != instance.CodeInsufficientCapacity) { //nolint:errorlint // the error itself
				t.Errorf("outcome is %+v", o)
			}
		}
		if calls := len(e.of(instance.VerbStart)); calls > 12 {
			t.Errorf("%d calls", calls)
		}
	})
}

// TestACallerWhoseInstancesAllRunIsAnsweredBeforeWhatFollows has a batch lack capacity for one of its
// callers, after EC2 has started what another one wants that did not run already. What somebody
// does to these instances while the batch waits for tokens is no reason to reject that caller. It is
// what happens in the story of TestEveryOutcomeIsOneOfSomeOneByOneOrder with the seed 4008651276.
func TestACallerWhoseInstancesAllRunIsAnsweredBeforeWhatFollows(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		lead, runs, idle, full := id(1), id(2), id(3), id(4)
		ec2 := simulate(t, sim.Config{
			Speed:  1,
			Fleet:  []sim.Spec{{ID: lead}, {ID: runs, State: instance.StateRunning}, {ID: idle}, {ID: full, Type: "m5.large"}},
			Faults: []sim.Fault{{Kind: sim.InsufficientCapacity, Partial: true, Match: sim.Match{Types: []string{"m5.large"}}}},
		})
		time.Sleep(time.Minute) // the launch of what runs is not taken for a start
		b := connect(t, &endpoint{answer: simulated{ec2}.answer, latency: always(100 * time.Millisecond)}, func(c *Config) {
			c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 2, Refill: 0.2}}
		})
		starting := background(t.Context(), b, start(lead))
		partial := background(t.Context(), b, start(runs, idle))
		lacking := background(t.Context(), b, start(full))
		time.Sleep(time.Second)
		if o := execute(t.Context(), b, instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{idle}})[0]; o.err != nil || o.result.Changes[0].Previous != instance.StatePending {
			t.Fatalf("the stop of what was started got %+v", o)
		}
		if o := starting(); o.err != nil {
			t.Error(o.err)
		}
		if o := lacking(); o.refusedAs(t).Code != instance.CodeInsufficientCapacity {
			t.Errorf("the caller for whom there is no capacity got %+v", o)
		}
		o := partial()
		if o.err != nil || len(o.result.Changes) != 2 {
			t.Fatalf("the caller whose instances all run got %+v", o)
		}
		if found, started := o.result.Changes[0], o.result.Changes[1]; found.Previous != instance.StateRunning || found.Current != instance.StateRunning ||
			started.Previous != instance.StateStopped || started.Current != instance.StatePending {
			t.Errorf("it is told %+v", o.result.Changes)
		}
	})
}
