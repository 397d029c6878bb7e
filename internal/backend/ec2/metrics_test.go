package ec2

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/backend/sqstest"
	"github.com/instanced/instanced/internal/instance"
)

// measure has a backend register its metrics, and returns a scrape of them: the value of each
// series, of a histogram the count and the sum.
func measure(t testing.TB) (adjust func(*Config), scrape func() map[string]float64) {
	registry := prometheus.NewPedanticRegistry()
	return func(c *Config) { c.Metrics = registry }, func() map[string]float64 {
		t.Helper()
		synctest.Wait() // callers may be answered before all is counted
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, family := range families {
			for _, m := range family.GetMetric() {
				name := family.GetName() + labels(m)
				switch {
				case m.GetHistogram() != nil:
					values[name+" count"] = float64(m.GetHistogram().GetSampleCount())
					values[name+" sum"] = m.GetHistogram().GetSampleSum()
				case m.GetCounter() != nil:
					values[name] = m.GetCounter().GetValue()
				default:
					values[name] = m.GetGauge().GetValue()
				}
			}
		}
		return values
	}
}

func labels(m *dto.Metric) string {
	var pairs []string
	for _, l := range m.GetLabel() {
		pairs = append(pairs, l.GetName()+"="+l.GetValue())
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

// want compares series. One that is not there counts as zero.
func want(t *testing.T, got, expected map[string]float64) {
	t.Helper()
	for name, value := range expected {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
}

func TestMetricsShowWhatMergingSaved(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		e := &endpoint{answer: (&fleet{}).answer, latency: always(300 * time.Millisecond)}
		b := connect(t, e, adjust)
		first := background(t.Context(), b, start(id(0)))
		var others []func() outcome
		for n := range 20 {
			others = append(others, background(t.Context(), b, start(ids(2*n+1, 2*n+3)...)))
		}
		want(t, scrape(), map[string]float64{
			"instanced_ec2_waiting_instances{action=StartInstances}":      40,
			"instanced_ec2_batches_in_flight{action=StartInstances}":      1,
			"instanced_ec2_calls_total{action=StartInstances,outcome=ok}": 0,
		})
		time.Sleep(100 * time.Millisecond)
		want(t, scrape(), map[string]float64{"instanced_ec2_oldest_waiting_seconds{action=StartInstances}": 0.1})
		first()
		for _, other := range others {
			if o := other(); o.err != nil {
				t.Fatal(o.err)
			}
		}
		synctest.Wait()
		want(t, scrape(), map[string]float64{
			"instanced_ec2_calls_total{action=StartInstances,outcome=ok}":      2,
			"instanced_ec2_call_duration_seconds{action=StartInstances} count": 2,
			"instanced_ec2_call_duration_seconds{action=StartInstances} sum":   0.6,
			"instanced_ec2_call_instances{action=StartInstances} count":        2,
			"instanced_ec2_call_instances{action=StartInstances} sum":          41,
			"instanced_ec2_call_requests{action=StartInstances} count":         2,
			"instanced_ec2_call_requests{action=StartInstances} sum":           21,
			"instanced_ec2_queue_wait_seconds{action=StartInstances} count":    41,
			"instanced_ec2_waiting_instances{action=StartInstances}":           0,
			"instanced_ec2_oldest_waiting_seconds{action=StartInstances}":      0,
			"instanced_ec2_batches_in_flight{action=StartInstances}":           0,
			"instanced_ec2_calls_total{action=StopInstances,outcome=ok}":       0,
			"instanced_ec2_throttled_calls_total{action=StartInstances}":       0,
		})
		if waited := scrape()["instanced_ec2_queue_wait_seconds{action=StartInstances} sum"]; math.Abs(waited-40*0.3) > 1e-6 {
			t.Errorf("instances waited for %v seconds, want 12", waited)
		}
	})
}

func TestMetricsShowWhatWaitsForABucketUntilItLeaves(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		b := connect(t, &endpoint{answer: (&fleet{}).answer}, adjust)
		if o := execute(t.Context(), b, start(ids(0, 1000)...))[0]; o.err != nil {
			t.Fatal(o.err)
		}
		ctx, leave := context.WithCancel(t.Context())
		leaver := background(ctx, b, start(ids(1000, 1500)...))
		time.Sleep(4 * time.Second)
		stayer := background(t.Context(), b, by("another", start(ids(2000, 2010)...)))
		want(t, scrape(), map[string]float64{
			"instanced_ec2_waiting_instances{action=StartInstances}":      510,
			"instanced_ec2_oldest_waiting_seconds{action=StartInstances}": 4,
		})
		time.Sleep(500 * time.Millisecond) // there are 9 tokens then
		leave()
		leaver()
		want(t, scrape(), map[string]float64{
			"instanced_ec2_waiting_instances{action=StartInstances}":      10,
			"instanced_ec2_oldest_waiting_seconds{action=StartInstances}": 0.5,
		})
		if o := stayer(); o.err != nil {
			t.Fatal(o.err)
		}
		want(t, scrape(), map[string]float64{
			"instanced_ec2_waiting_instances{action=StartInstances}":        0,
			"instanced_ec2_oldest_waiting_seconds{action=StartInstances}":   0,
			"instanced_ec2_queue_wait_seconds{action=StartInstances} count": 1010,
		})
	})
}

func TestMetricsShowThrottlesAndWhatIsRetried(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		throttles := 3
		f := &fleet{refuse: func(c call) (reply, bool) {
			throttles--
			return refusal(503, "RequestLimitExceeded", "Request limit exceeded."), c.action == "StartInstances" && throttles >= 0
		}}
		b := connect(t, &endpoint{answer: f.answer}, adjust)
		done := background(t.Context(), b, start(ids(0, 7)...))
		want(t, scrape(), map[string]float64{"instanced_ec2_retrying_instances{action=StartInstances}": 7})
		if o := done(); o.err != nil {
			t.Fatal(o.err)
		}
		want(t, scrape(), map[string]float64{
			"instanced_ec2_calls_total{action=StartInstances,outcome=RequestLimitExceeded}": 3,
			"instanced_ec2_calls_total{action=StartInstances,outcome=ok}":                   1,
			"instanced_ec2_throttled_calls_total{action=StartInstances}":                    3,
			"instanced_ec2_retries_total{action=StartInstances,reason=throttled}":           3,
			"instanced_ec2_retrying_instances{action=StartInstances}":                       0,
		})
	})
}

func TestMetricsShowHowBatchesAreDivided(t *testing.T) {
	rejecting := func(bad call, code, text string) func(call) (reply, bool) {
		return func(c call) (reply, bool) {
			return refusal(400, code, text), c.action == "StartInstances" && c.among(bad.ids[0])
		}
	}
	bad := call{ids: []instance.ID{id(3)}}
	tooMany := func(c call) (reply, bool) {
		return refusal(400, "ResourceCountExceeded", "Too many."), c.action == "StartInstances" && len(c.ids) > 4
	}
	for _, tc := range []struct {
		name  string
		fleet *fleet
		want  map[string]float64
	}{
		{"an error that names no instance", &fleet{refuse: rejecting(bad, "Unsupported", "Not supported.")}, map[string]float64{
			"instanced_ec2_divided_batches_total{action=StartInstances,how=bisection}": 1,
			"instanced_ec2_retries_total{action=StartInstances,reason=rejected}":       0,
		}},
		{"an error that names an instance", &fleet{refuse: rejecting(bad, "IncorrectInstanceState", fmt.Sprintf("The instance '%s' is not in a state from which it can be started.", id(3)))}, map[string]float64{
			"instanced_ec2_divided_batches_total{action=StartInstances,how=bisection}":        0,
			"instanced_ec2_retries_total{action=StartInstances,reason=rejected}":              1,
			"instanced_ec2_calls_total{action=StartInstances,outcome=IncorrectInstanceState}": 1,
		}},
		{"an unknown code", &fleet{refuse: rejecting(bad, "Made.Up-By-Somebody", "Something.")}, map[string]float64{
			"instanced_ec2_calls_total{action=StartInstances,outcome=Made.Up-By-Somebody}": 0,
		}},
		{"too many instances", &fleet{refuse: tooMany}, map[string]float64{
			"instanced_ec2_divided_batches_total{action=StartInstances,how=too_large}":       1,
			"instanced_ec2_calls_total{action=StartInstances,outcome=ResourceCountExceeded}": 1,
			"instanced_ec2_calls_total{action=StartInstances,outcome=ok}":                    4, // the first alone, and 7 by three
		}},
		{"too little capacity", crowded(4, true), map[string]float64{
			"instanced_ec2_divided_batches_total{action=StartInstances,how=capacity_search}": 1,
		}},
	} {
		inBubble(t, tc.name, func(t *testing.T) {
			adjust, scrape := measure(t)
			b := connect(t, &endpoint{answer: tc.fleet.answer, latency: always(time.Millisecond)}, adjust)
			execute(t.Context(), b, start(id(0)), start(id(1)), start(id(2)), start(id(3)), start(id(4)), start(id(5)), start(id(6)), start(id(7)))
			got := scrape()
			want(t, got, tc.want)
			calls := 0.0
			for name, value := range got {
				if strings.HasPrefix(name, "instanced_ec2_calls_total{action=StartInstances,") {
					calls += value
				}
			}
			if n := got["instanced_ec2_call_instances{action=StartInstances} count"]; n != calls {
				t.Errorf("%v calls by outcome, %v by their instances", calls, n)
			}
			if tc.name == "an unknown code" && got["instanced_ec2_calls_total{action=StartInstances,outcome=_OTHER}"] == 0 {
				t.Error("no call counts as _OTHER")
			}
		})
	}
}

func TestMetricsShowWhatBecameOfLostAnswers(t *testing.T) {
	for _, tc := range []struct {
		name       string
		lost       int
		carriedOut bool
		want       map[string]float64
	}{
		{"the call was carried out", 1, true, map[string]float64{"carried_out": 3}},
		{"it was not", 1, false, map[string]float64{"sent_again": 3}},
		{"EC2 never answers", 100, false, map[string]float64{"sent_again": 9, "unresolved": 3}},
	} {
		inBubble(t, tc.name, func(t *testing.T) {
			adjust, scrape := measure(t)
			var f fleet
			lost := 0
			b := connect(t, &endpoint{answer: func(ctx context.Context, c call) (reply, error) {
				if c.action != "StartInstances" || lost >= tc.lost {
					return f.answer(ctx, c)
				}
				lost++
				if tc.carriedOut {
					f.start(c.ids)
				}
				return reply{}, errLost
			}}, adjust)
			execute(t.Context(), b, start(ids(0, 3)...))
			got := scrape()
			for _, resolution := range resolutionNames {
				want(t, got, map[string]float64{"instanced_ec2_lost_answers_total{action=StartInstances,resolution=" + resolution + "}": tc.want[resolution]})
			}
			want(t, got, map[string]float64{"instanced_ec2_calls_total{action=StartInstances,outcome=unknown_outcome}": float64(lost)})
		})
	}
}

func TestMetricsShowWhetherEC2IsReached(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		away := false
		var f fleet
		b := connect(t, &endpoint{answer: func(ctx context.Context, c call) (reply, error) {
			if away {
				return reply{}, refused(ctx)
			}
			return f.answer(ctx, c)
		}}, adjust)
		if _, ok := scrape()["instanced_ec2_last_response_timestamp_seconds{}"]; ok {
			t.Error("EC2 answered before it was called")
		}
		execute(t.Context(), b, start(id(1)))
		answered := float64(time.Now().Unix())
		away = true
		for range 10 {
			time.Sleep(time.Second)
			execute(t.Context(), b, start(id(2)))
		}
		got := scrape()
		want(t, got, map[string]float64{
			"instanced_ec2_circuit_open{}":                    1,
			"instanced_ec2_last_response_timestamp_seconds{}": answered,
		})
		if got["instanced_ec2_calls_total{action=StartInstances,outcome=unreachable}"] == 0 {
			t.Error("no call was unreachable")
		}
		away = false
		time.Sleep(time.Minute)
		execute(t.Context(), b, start(id(2)))
		want(t, scrape(), map[string]float64{"instanced_ec2_circuit_open{}": 0})
	})
}

func TestMetricsShowWhenCredentialsExpire(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		expires := time.Now().Add(time.Hour)
		held := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret", CanExpire: true, Expires: expires}
		b := connect(t, &endpoint{answer: (&fleet{}).answer}, adjust, func(c *Config) {
			c.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return held, nil })
		})
		const name = "instanced_ec2_credentials_expiry_timestamp_seconds{}"
		want(t, scrape(), map[string]float64{name: math.Inf(1)})
		execute(t.Context(), b, start(id(1)))
		want(t, scrape(), map[string]float64{name: float64(expires.Unix())})
		held = aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret"}
		time.Sleep(2 * time.Hour)
		execute(t.Context(), b, start(id(2)))
		want(t, scrape(), map[string]float64{name: math.Inf(1)})
	})
}

func TestMetricsShowTheQueuesMessages(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		q := &sqstest.Queue{}
		h := listen(t, q, adjust)
		began := time.Now()
		late := began.Add(-90 * time.Second)
		q.Send("hello")
		q.Send(sqstest.Event("one", string(id(1)), "stopped", late))
		q.Send(sqstest.Event("one", string(id(1)), "stopped", late))
		notices := h.after(time.Second)
		want(t, scrape(), map[string]float64{
			"instanced_sqs_messages_received_total{result=new}":        1,
			"instanced_sqs_messages_received_total{result=duplicate}":  1,
			"instanced_sqs_messages_received_total{result=unreadable}": 1,
			"instanced_sqs_messages_deleted_total{}":                   0,
			"instanced_sqs_event_age_seconds{} count":                  1,
			"instanced_sqs_event_age_seconds{} sum":                    90,
			"instanced_sqs_unacknowledged_events{}":                    1,
			"instanced_sqs_last_receive_timestamp_seconds{}":           float64(began.Unix()),
		})
		notices[0].Ack()
		h.after(time.Second)
		want(t, scrape(), map[string]float64{
			"instanced_sqs_messages_deleted_total{}":                          2,
			"instanced_sqs_unacknowledged_events{}":                           0,
			"instanced_sqs_calls_total{action=DeleteMessageBatch,outcome=ok}": 1,
		})
		q.Fail("ReceiveMessage")
		h.after(time.Minute)
		got := scrape()
		failed := 0.0
		for name, value := range got {
			if strings.HasPrefix(name, "instanced_sqs_calls_total{action=ReceiveMessage,") && !strings.HasSuffix(name, "outcome=ok}") {
				failed += value
			}
		}
		if failed < 3 {
			t.Errorf("%v calls failed", failed)
		}
		if age := float64(time.Now().Unix()) - got["instanced_sqs_last_receive_timestamp_seconds{}"]; age < 30 {
			t.Errorf("the queue was last read %v seconds ago", age)
		}
	})
}

func TestUnreadableDescriptionsAreCounted(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		adjust, scrape := measure(t)
		b := connect(t, &endpoint{answer: func(context.Context, call) (reply, error) {
			r := described([]*instance.Instance{{ID: id(1), State: instance.StateStopped}, {ID: id(2), State: instance.StateStopped}}, "")
			r.body = strings.Replace(r.body, "<name>stopped</name>", "<name>asleep</name>", 1)
			r.body = strings.Replace(r.body, fmt.Sprintf("<code>%d</code>", instance.StateStopped.Code()|0x2300), "<code>7</code>", 1)
			return r, nil
		}}, adjust)
		page, err := b.Describe(t.Context(), instance.DescribeQuery{IDs: ids(1, 3)})
		if err != nil || len(page.Unreadable) != 1 {
			t.Fatalf("%+v, %v", page, err)
		}
		want(t, scrape(), map[string]float64{
			"instanced_ec2_unreadable_descriptions_total{}":                  1,
			"instanced_ec2_calls_total{action=DescribeInstances,outcome=ok}": 1,
		})
	})
}

// TestAScrapeCostsTheSameHoweverManyWait has ever more instances wait for their bucket, each with
// a caller of its own.
func TestAScrapeCostsTheSameHoweverManyWait(t *testing.T) {
	cost := func(waiting int) (allocs float64) {
		inBubble(t, fmt.Sprint(waiting), func(t *testing.T) {
			adjust, scrape := measure(t)
			b := connect(t, &endpoint{answer: (&fleet{}).answer}, adjust)
			execute(t.Context(), b, start(ids(0, 1000)...))
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			cmd := each(start(ids(1000, 1000+waiting)...))
			done := background(ctx, b, cmd)
			if got := scrape()["instanced_ec2_waiting_instances{action=StartInstances}"]; got != float64(waiting) {
				t.Fatalf("%v instances wait, want %d", got, waiting)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			scrape()
			runtime.ReadMemStats(&after)
			allocs = float64(after.Mallocs - before.Mallocs)
			leave()
			done()
		})
		return allocs
	}
	few, many := cost(100), cost(100_000)
	if t.Logf("%v allocations, %v", few, many); many > 1.2*few {
		t.Errorf("a scrape takes %v allocations while 100,000 wait, and %v while 100 do", many, few)
	}
}

// TestCountingACallAllocatesLittle bounds what a call pays for its metrics: an allocation for
// each item at most.
func TestCountingACallAllocatesLittle(t *testing.T) {
	b := connect(t, nil, func(c *Config) { c.Metrics = prometheus.NewRegistry() })
	items := make([]*dispatch.Item, 1000)
	for n := range items {
		items[n] = &dispatch.Item{Request: dispatch.NewRequest(start(id(n)), time.Time{}), IDs: ids(n, n+1)}
	}
	m := b.metrics.actions[instance.VerbStart]
	if n := testing.AllocsPerRun(10, func() {
		m.countQueueWait(items)
		m.countCall(time.Second, nil)
	}); n > 2 {
		t.Errorf("%v allocations for a call for 1000 instances", n)
	}
}

func TestOutcomesAreCodesOfTheTable(t *testing.T) {
	for _, e := range []struct {
		f    *failure
		want string
	}{
		{nil, "ok"},
		{&failure{answered: true, err: &instance.Error{Code: "InsufficientInstanceCapacity"}}, "InsufficientInstanceCapacity"},
		{&failure{answered: true, err: &instance.Error{Code: "i-0123456789abcdef0"}}, "_OTHER"},
		{&failure{reaction: failAll, fenced: true, err: &instance.Error{}}, "not_sent"},
		{&failure{reaction: unknownOutcome, unreachable: true, err: &instance.Error{}}, "unknown_outcome"},
		{&failure{reaction: failAll, unreachable: true, err: &instance.Error{}}, "unreachable"},
		{&failure{reaction: failAll, unreachable: true, err: &instance.Error{Cause: &credentialsError{context.DeadlineExceeded}}}, "no_credentials"},
		{&failure{reaction: failAll, err: &instance.Error{}}, "_OTHER"},
	} {
		if got := e.f.outcome(); got != e.want {
			t.Errorf("%+v counts as %s, want %s", e.f, got, e.want)
		}
	}
}
