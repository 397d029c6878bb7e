package ec2

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// among says that a batch holds an instance.
func (c call) among(id instance.ID) bool { return slices.Contains(c.ids, id) }

// TestEveryErrorIsIsolated sends three callers in one batch, of which one wants a bad
// instance, and compares with what EC2 says to it alone.
func TestEveryErrorIsIsolated(t *testing.T) {
	bad := id(0xbad)
	const unauthorized = "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/u is not authorized to perform: ec2:StartInstances " +
		"on resource: arn:aws:ec2:us-east-1:123456789012:instance/i-00000000000000bad because no identity-based policy allows the ec2:StartInstances action. Encoded authorization failure message: 4d7a"
	tests := []struct {
		name   string
		status int
		code   string
		text   string // with %s for the instance
		kind   instance.Kind
	}{
		{"S1", 400, "IncorrectInstanceState", "The instance '%s' is not in a state from which it can be started.", instance.KindPrecondition},
		{"S2", 400, "IncorrectInstanceState", "Instance '%s' cannot be stopped as it has never reached the 'running' state.", instance.KindPrecondition},
		{"S3", 400, "IncorrectInstanceState", "This instance '%s' is not in a state from which it can be stopped.", instance.KindPrecondition},
		{"R", 400, "IncorrectState", "Cannot reboot instance %s that is currently in stopped state.", instance.KindPrecondition},
		{"P1", 400, "OperationNotPermitted", "The instance '%s' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.", instance.KindPrecondition},
		{"P2", 400, "OperationNotPermitted", "The instance '%s' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.", instance.KindPrecondition},
		{"P3", 400, "OperationNotPermitted", "The instance '%s' may not be terminated. Modify its 'disableApiStop' instance attribute and try again.", instance.KindPrecondition},
		{"IS1", 400, "UnsupportedOperation", "The instance '%s' does not have an 'ebs' root device type and cannot be stopped.", instance.KindPrecondition},
		{"NR", 400, "InvalidParameterValue", "Invalid value '%s' for instanceId. Instance does not have a volume attached at root (/dev/sda1)", instance.KindPrecondition},
		{"not found", 400, "InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", instance.KindNotFound},
		{"malformed", 400, "InvalidInstanceID.Malformed", `Invalid id: "%s"`, instance.KindInvalid},
		{"spot request", 400, "IncorrectSpotRequestState", "You can't start the Spot Instance '%s' because the associated Spot Instance request is not in an appropriate state to support start.", instance.KindPrecondition},
		{"not authorized, by ARN", 403, "UnauthorizedOperation", strings.ReplaceAll(unauthorized, string(bad), "%s"), instance.KindPermission},
		{"not authorized, no instance named", 403, "UnauthorizedOperation", "You are not authorized to perform this operation.", instance.KindPermission},
		{"unsupported", 400, "Unsupported", "The requested configuration is currently not supported. Please check the documentation for supported configurations.", instance.KindPrecondition},
		{"hibernation", 400, "UnsupportedHibernationConfiguration", "The instance can't be hibernated because it was not configured at launch for hibernation: %s", instance.KindPrecondition},
		{"an unknown code", 400, "SomethingNew", "Something about it.", instance.KindPrecondition},
		{"capacity", 500, "InsufficientInstanceCapacity", "Insufficient capacity.", instance.KindExhausted},
		{"capacity of a host", 400, "InsufficientCapacityOnHost", "Dedicated host h-0123456789abcdef0 has insufficient capacity", instance.KindExhausted},
		{"spot capacity", 500, "InsufficientInstanceCapacity", "You can't start the Spot Instance '%s' because there is no available Spot capacity.", instance.KindExhausted},
		{"quota of vCPUs", 400, "VcpuLimitExceeded", "You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket that the specified instance type belongs to.", instance.KindExhausted},
	}
	for _, test := range tests {
		for _, perInstance := range []bool{false, true} {
			inBubble(t, fmt.Sprintf("%s, per instance %v", test.name, perInstance), func(t *testing.T) {
				message := strings.ReplaceAll(test.text, "%s", string(bad))
				f := &fleet{types: map[instance.ID]string{bad: "p4d.24xlarge"}, refuse: func(c call) (reply, bool) {
					return refusal(test.status, test.code, message), c.action == "StartInstances" && c.among(bad)
				}}
				e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
				b := connect(t, e)
				cmds := []instance.Command{start(id(99)), start(id(1)), start(bad), start(id(2)), start(id(1), id(3))}
				cmds[2].PerInstance = perInstance
				outcomes := execute(t.Context(), b, cmds...)
				for n, o := range outcomes {
					if n != 2 && (o.err != nil || o.result.Changes[0].Current != instance.StatePending) {
						t.Errorf("caller %d got %+v", n, o)
					}
				}
				var refused *instance.Error
				if perInstance {
					if o := outcomes[2]; o.err != nil || len(o.result.Failures) != 1 || o.result.Failures[0].ID != bad {
						t.Fatalf("the per-instance caller got %+v", o)
					}
					refused = outcomes[2].result.Failures[0].Err
				} else {
					refused = outcomes[2].refusedAs(t)
				}
				if refused.Kind != test.kind || refused.Code != test.code || refused.Message != message || refused.OutcomeUnknown {
					t.Errorf("refused with kind %d: %v, want kind %d, %q", refused.Kind, refused, test.kind, message)
				}
				if named := strings.Contains(test.text, "%s"); named && !slices.Equal(refused.InstanceIDs, []instance.ID{bad}) {
					t.Errorf("names %v", refused.InstanceIDs)
				}
			})
		}
	}
}

func TestMissingInstancesFailOnlyTheirCallers(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		missing := ids(100, 104)
		f := &fleet{refuse: func(c call) (reply, bool) {
			var gone []instance.ID
			for _, id := range c.ids {
				if slices.Contains(missing, id) {
					gone = append(gone, id)
				}
			}
			if c.action != "StartInstances" || len(gone) == 0 {
				return reply{}, false
			}
			return refusal(400, instance.CodeNotFound, instance.NotFound(gone...).Message), true
		}}
		e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
		b := connect(t, e)
		outcomes := execute(t.Context(), b,
			start(id(99)),
			start(id(1), missing[2], missing[0]),
			start(missing[1]),
			start(id(1), id(2)),
			each(start(missing[3], id(3), missing[0])),
		)
		wantText := func(n int, text string, own ...instance.ID) {
			t.Helper()
			if e := outcomes[n].refusedAs(t); e.Kind != instance.KindNotFound || e.Message != text || !slices.Equal(e.InstanceIDs, own) {
				t.Errorf("caller %d got %v, naming %v", n, e, e.InstanceIDs)
			}
		}
		wantText(1, fmt.Sprintf("The instance IDs '%s, %s' do not exist", missing[2], missing[0]), missing[2], missing[0])
		wantText(2, fmt.Sprintf("The instance ID '%s' does not exist", missing[1]), missing[1])
		if o := outcomes[3]; o.err != nil || o.result.Changes[0].Previous != instance.StateStopped {
			t.Errorf("caller 3 got %+v", o)
		}
		o := outcomes[4]
		if o.err != nil || len(o.result.Changes) != 1 || len(o.result.Failures) != 2 || o.result.Failures[0].ID != missing[3] {
			t.Fatalf("caller 4 got %+v", o)
		}
		if text := o.result.Failures[1].Err.Message; text != fmt.Sprintf("The instance ID '%s' does not exist", missing[0]) {
			t.Errorf("caller 4 was told %q", text)
		}
		if calls := e.of(instance.VerbStart); len(calls) != 3 {
			t.Errorf("%d calls, want 3: the lead, the batch, the rest of the batch", len(calls))
		}
	})
}

func TestBisectingIsCheap(t *testing.T) {
	const n = 256
	for _, k := range []int{1, 2, 3, 5, 8} {
		for _, where := range []string{"first", "last", "random"} {
			inBubble(t, fmt.Sprintf("%d bad of %d, %s", k, n, where), func(t *testing.T) {
				bad := map[instance.ID]bool{}
				for len(bad) < k {
					at := map[string]int{"first": len(bad), "last": n - 1 - len(bad), "random": rand.IntN(n)}[where]
					bad[id(at)] = true
				}
				f := &fleet{refuse: func(c call) (reply, bool) {
					return refusal(400, "Unsupported", "The requested configuration is currently not supported."),
						c.action == "StartInstances" && slices.ContainsFunc(c.ids, func(id instance.ID) bool { return bad[id] })
				}}
				e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
				b := connect(t, e)
				cmds := []instance.Command{start(id(9999))}
				for i := range n {
					cmds = append(cmds, start(id(i)))
				}
				for i, o := range execute(t.Context(), b, cmds...) {
					if refused := bad[cmds[i].IDs[0]]; refused != (o.err != nil) {
						t.Errorf("%s: %+v", cmds[i].IDs[0], o)
					}
				}
				maxCalls := float64(k)*math.Log2(n) + float64(k)
				if calls := len(e.of(instance.VerbStart)) - 2; float64(calls) > maxCalls { // the lead and the batch itself
					t.Errorf("bisecting took %d calls, want at most %v", calls, maxCalls)
				}
			})
		}
	}
}

func TestAThrottledBatchWaitsWhole(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		left := 6
		f := &fleet{refuse: func(c call) (reply, bool) {
			if c.action != "StartInstances" || len(c.ids) == 1 || left == 0 {
				return reply{}, false
			}
			left--
			return refusal(503, "RequestLimitExceeded", "Request limit exceeded."), true
		}}
		e := &endpoint{answer: f.answer, latency: always(time.Millisecond)}
		b := connect(t, e)
		cmds := []instance.Command{start(id(9999))}
		for i := range 100 {
			cmds = append(cmds, start(id(i)))
		}
		for _, o := range execute(t.Context(), b, cmds...) {
			if o.err != nil {
				t.Fatal(o.err)
			}
		}
		calls := e.of(instance.VerbStart)
		if len(calls) != 1+6+1 {
			t.Errorf("%d calls", len(calls))
		}
		for n, c := range calls[1:] {
			if len(c.ids) != 100 {
				t.Errorf("call %d is for %d instances", n, len(c.ids))
			}
			if gap := c.at.Sub(calls[n].at); n > 0 && gap < 100*time.Millisecond {
				t.Errorf("call %d went out %v after the one before", n, gap)
			}
		}
	})
	inBubble(t, "and who cannot wait is told at once when to come back", func(t *testing.T) {
		f := &fleet{refuse: func(c call) (reply, bool) {
			return refusal(503, "RequestLimitExceeded", "Request limit exceeded."), c.action == "StartInstances"
		}}
		b := connect(t, &endpoint{answer: f.answer})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began := time.Now()
		_, err := b.Execute(ctx, start(id(1)))
		e := outcome{err: err}.refusedAs(t)
		if e.Kind != instance.KindExhausted || e.Code != instance.CodeRequestLimitExceeded || e.RetryAfter == 0 || e.OutcomeUnknown {
			t.Errorf("error is %+v", e)
		}
		if time.Since(began) >= 20*time.Second {
			t.Error("it was told when its time was over")
		}
	})
}

// TestTheOutcomeOfAnEarlierAttemptStaysUnknown loses the answer to a start whose effect is not
// described yet, or whose instance is missing from the description. It is tried again, and fails
// before EC2 carries it out: that nothing was changed by the last try says nothing of the one
// before.
func TestTheOutcomeOfAnEarlierAttemptStaysUnknown(t *testing.T) {
	throttled := refusal(503, "RequestLimitExceeded", "Request limit exceeded.")
	tests := map[string]struct {
		deadline time.Duration
		again    func(context.Context, *Backend) (reply, error)
	}{
		"EC2 cannot be reached":      {time.Minute, func(ctx context.Context, _ *Backend) (reply, error) { return reply{}, refused(ctx) }},
		"a proxy refuses":            {time.Minute, func(context.Context, *Backend) (reply, error) { return reply{403, "<html>Forbidden</html>"}, nil }},
		"EC2 throttles for too long": {5 * time.Second, func(context.Context, *Backend) (reply, error) { return throttled, nil }},
		"this process ends as it waits": {time.Minute, func(_ context.Context, b *Backend) (reply, error) {
			time.AfterFunc(time.Second, b.Close)
			return throttled, nil
		}},
	}
	for name, test := range tests {
		for _, described := range []bool{true, false} {
			inBubble(t, fmt.Sprintf("%s, described %v", name, described), func(t *testing.T) {
				f, lost := &fleet{}, false
				var b *Backend
				e := &endpoint{latency: always(time.Millisecond)}
				e.answer = func(ctx context.Context, c call) (reply, error) {
					switch {
					case c.action == "DescribeInstances" && !described:
						c.ids = nil
						return f.answer(ctx, c)
					case c.action == "DescribeInstances":
						return f.answer(ctx, c)
					case !lost:
						lost = true
						return reply{}, errLost
					}
					return test.again(ctx, b)
				}
				b = connect(t, e, func(c *Config) { c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 2, Refill: 0.1}} })
				ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
				defer cancel()
				err := execute(ctx, b, start(id(1)))[0].refusedAs(t)
				if !lost || !err.OutcomeUnknown || err.Kind != instance.KindUnavailable || strings.Contains(err.Message, "nothing was changed") {
					t.Errorf("got %+v, want an unknown outcome", err)
				}
			})
		}
	}
}
