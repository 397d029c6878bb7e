package dispatch

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Callers leave a batch at every point of its way. Each call costs one request token and as many
// instance tokens as it has instances, and what is not sent costs nothing.
func TestTokensOfWhatIsNotSentAreGivenBack(t *testing.T) {
	const capacity, many = 5, 100
	nothing := func(*Dispatcher, *Batch, []*Request) {}
	leave := func(n ...int) func(*Dispatcher, *Batch, []*Request) {
		return func(d *Dispatcher, _ *Batch, requests []*Request) {
			for _, i := range n {
				d.Leave(requests[i])
			}
		}
	}
	for name, tc := range map[string]struct {
		// built, paid and again are called when the batch is built, when its tokens are taken, and
		// before its next call.
		built, paid, again func(*Dispatcher, *Batch, []*Request)
		dryRun             bool
		requests, ids      float64
	}{
		"no caller leaves":                     {built: nothing, paid: nothing, requests: 1, ids: 12},
		"all leave before the tokens are due":  {built: leave(0, 1), paid: nothing},
		"some leave before the tokens are due": {built: leave(0), paid: nothing, requests: 1, ids: 2},
		"all leave before it is sent":          {built: nothing, paid: leave(0, 1)},
		"some leave before it is sent":         {built: nothing, paid: leave(1), requests: 1, ids: 10},
		"no caller leaves, it is sent again":   {built: nothing, paid: nothing, again: nothing, requests: 2, ids: 24},
		"all leave before it is sent again":    {built: nothing, paid: nothing, again: leave(0, 1), requests: 1, ids: 12},
		"some leave before it is sent again":   {built: nothing, paid: nothing, again: leave(0), requests: 2, ids: 14},
		"a dry run leaves before it is sent":   {built: leave(0, 1), paid: nothing, dryRun: true},
	} {
		t.Run(name, func(t *testing.T) {
			d, a := starts(t, Limit{capacity, 1e-9}, Limit{many, 1e-9})
			var requests []*Request
			for n, count := range []int{10, 2} {
				var ids []instance.ID
				for i := range count {
					ids = append(ids, id(100*n+i))
				}
				cmd := startOf("a", ids...)
				cmd.DryRun = tc.dryRun
				requests = append(requests, enqueue(t, d, cmd))
			}
			b, _ := d.next()
			if b == nil || !tc.dryRun && len(b.Items) != 2 {
				t.Fatalf("the batch is %+v", b)
			}
			send := func(between func(*Dispatcher, *Batch, []*Request)) {
				items := d.Present(b.Items)
				if len(items) == 0 {
					return
				}
				if wait := d.TakeTokens(b, len(DistinctIDs(items))); wait != 0 {
					t.Errorf("the call waits %v for tokens", wait)
				}
				between(d, b, requests)
				d.ReportSent(b, items)
			}
			tc.built(d, b, requests)
			send(tc.paid)
			if tc.again != nil {
				send(tc.again)
			}
			d.Done(b)
			if used := capacity - a.requests.level; used < tc.requests-0.01 || used > tc.requests+0.01 {
				t.Errorf("%.2f request tokens are used, want %g", used, tc.requests)
			}
			if used := many - a.instances.level; used < tc.ids-0.01 || used > tc.ids+0.01 {
				t.Errorf("%.2f instance tokens are used, want %g", used, tc.ids)
			}
		})
	}
}

// What a part of a batch did not spend is there for the next part, when it is due.
func TestTokensInAdvanceAreDueOnce(t *testing.T) {
	d, a := starts(t, Limit{1, 0.001}, Limit{100, 1e-9})
	r := enqueue(t, d, startOf("a", id(1), id(2)))
	b, _ := d.next()
	d.TakeTokens(b, 2)
	d.ReportSent(b, d.Present(b.Items))
	first := d.TakeTokens(b, 1)
	second := d.TakeTokens(b, 2)
	if first < 990*time.Second || first > 1000*time.Second || second > first || second < first-10*time.Second {
		t.Errorf("the next call waits %v, and asked again %v; want a thousand seconds", first, second)
	}
	d.Leave(r)
	d.Done(b)
	if a.requests.level < 0 || a.instances.level < 97.9 || a.instances.level > 98.1 {
		t.Errorf("%.2f request tokens and %.2f instance tokens are left, want one call's tokens to be used", a.requests.level, a.instances.level)
	}
}
