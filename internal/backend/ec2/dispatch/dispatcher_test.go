package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// starts returns a dispatcher of starts with the given buckets. It is closed with the test.
func starts(t *testing.T, requests, instances Limit) (*Dispatcher, *action) {
	d := New(map[instance.Verb]Buckets{instance.VerbStart: {
		Requests:  NewBucket("requests", requests),
		Instances: NewBucket("instances", instances),
	}})
	t.Cleanup(d.Close)
	return d, d.actions[instance.VerbStart]
}

func id(n int) instance.ID { return instance.ID(fmt.Sprintf("i-%017x", n)) }

func startOf(principal string, ids ...instance.ID) instance.Command {
	return instance.Command{Verb: instance.VerbStart, IDs: ids, Principal: principal}
}

// enqueue queues a command without a deadline.
func enqueue(t *testing.T, d *Dispatcher, cmd instance.Command) *Request {
	t.Helper()
	r := NewRequest(cmd, time.Time{})
	if err := d.Enqueue(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// finish sends and resolves a batch.
func finish(d *Dispatcher, b *Batch) {
	d.ReportSent(b, b.Items)
	for _, it := range b.Items {
		d.Resolve(it, nil, nil)
	}
	d.Done(b)
}

// carryOut carries out batches, each within the latency, until the dispatcher is closed.
func carryOut(d *Dispatcher, latency time.Duration) {
	for b := d.Next(); b != nil; b = d.Next() {
		go func() {
			time.Sleep(latency)
			finish(d, b)
		}()
	}
}

// TestQueueingCostsTheSameHoweverManyWait has requests come, be rejected for their deadline,
// and leave, while instance tokens are short. Only the depth of a heap or tree may grow.
func TestQueueingCostsTheSameHoweverManyWait(t *testing.T) {
	const probes = 20
	measure := func(t *testing.T, waiting, principals int) int {
		d, a := starts(t, Limit{1000, 100}, Limit{1, 0.001})
		enqueue(t, d, startOf("0", id(0)))
		first, _ := d.next()
		finish(d, first)
		var requests []*Request
		for n := range waiting {
			requests = append(requests, enqueue(t, d, startOf(fmt.Sprint(n%principals), id(n))))
			if b, _ := d.next(); b != nil {
				t.Fatal("a start without tokens was sent")
			}
		}
		before := a.steps
		for n := range probes {
			cmd := startOf(fmt.Sprint("probe", n), id(waiting+n))
			if d.Enqueue(NewRequest(cmd, time.Now().Add(time.Second))) == nil {
				t.Fatal("a start that cannot be sent within its deadline was accepted")
			}
			r := enqueue(t, d, cmd)
			d.next()
			d.Leave(r)
			d.next()
		}
		probing := (a.steps - before) / probes
		before = a.steps
		for _, r := range requests {
			d.Leave(r)
			d.next()
		}
		return max(probing, (a.steps-before)/waiting)
	}
	for name, principals := range map[string]func(waiting int) int{
		"one principal":      func(int) int { return 1 },
		"one principal each": func(waiting int) int { return waiting },
	} {
		t.Run(name, func(t *testing.T) {
			first := 0.0
			for _, waiting := range []int{10, 1_000, 100_000} {
				cost := float64(measure(t, waiting, principals(waiting))) / math.Log2(float64(waiting)+1)
				t.Logf("%d waiting: %.1f steps a request for each level", waiting, cost)
				first = cmp.Or(first, cost)
				if cost > 2*first {
					t.Errorf("a request costs %.1f steps for each level while %d wait, and %.1f while ten do", cost, waiting, first)
				}
			}
		})
	}
}

// TestABatchCostsWhatGoesIntoIt builds batches of a hundred instances while ever more requests
// wait: from one principal, from one each, and half of them for an instance that is busy. Only
// the depth of a heap or tree may grow.
func TestABatchCostsWhatGoesIntoIt(t *testing.T) {
	const size, batches = 100, 10
	measure := func(t *testing.T, waiting int, command func(n int) instance.Command) int {
		d, a := starts(t, Limit{1e6, 1e6}, Limit{1e9, 1e9})
		a.maxIDs = size
		d.setBusyLocked(id(1_000_000), new(Batch))
		for n := range waiting {
			enqueue(t, d, command(n))
		}
		first, _ := d.next() // tokens are allocated to everyone once
		finish(d, first)
		before := a.steps
		for range batches {
			b, _ := d.next()
			if b == nil || len(b.Items) != size {
				t.Fatalf("the batch is %+v", b)
			}
			finish(d, b)
		}
		return (a.steps - before) / batches / size
	}
	for name, command := range map[string]func(n int) instance.Command{
		"one principal": func(n int) instance.Command { return startOf("one", id(n)) },
		"one principal each": func(n int) instance.Command {
			return startOf(fmt.Sprint(n), id(n))
		},
		"half of them blocked": func(n int) instance.Command {
			if n%2 == 0 {
				return startOf(fmt.Sprint(n), id(1_000_000))
			}
			return startOf(fmt.Sprint(n), id(n))
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := 0.0
			for _, waiting := range []int{4_000, 100_000} {
				cost := float64(measure(t, waiting, command)) / math.Log2(float64(waiting)+1)
				t.Logf("%d waiting: %.1f steps an item for each level", waiting, cost)
				first = cmp.Or(first, cost)
				if cost > 2*first {
					t.Errorf("an item costs %.1f steps for each level while %d wait, and %.1f at first", cost, waiting, first)
				}
			}
		})
	}
}

// TestNothingWaitsThatCouldBeSent has random requests come and leave. After each event, what
// can be sent has been sent; in the end nothing is left of requests that are gone.
func TestNothingWaitsThatCouldBeSent(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 4))
			d, a := starts(t, Limit{4, 1.5}, Limit{20, 3})
			go carryOut(d, 700*time.Millisecond)
			var requests []*Request
			for range 1 + rng.IntN(60) {
				time.Sleep(time.Duration(rng.IntN(4)*rng.IntN(300_000_000)) + 1)
				if rng.IntN(4) == 0 && len(requests) > 0 {
					d.Leave(requests[rng.IntN(len(requests))])
				} else {
					cmd := startOf(fmt.Sprint(rng.IntN(4)))
					cmd.PerInstance = rng.IntN(2) == 0
					cmd.DryRun = rng.IntN(8) == 0
					if rng.IntN(8) == 0 {
						cmd.AdditionalInfo = "other"
					}
					first := rng.IntN(60)
					for n := range 1 + rng.IntN(2)*rng.IntN(25) {
						cmd.IDs = append(cmd.IDs, id(first+n))
					}
					requests = append(requests, enqueue(t, d, cmd))
				}
				synctest.Wait()
				checkQueues(t, seed, d, a)
			}
			for _, r := range requests {
				d.Leave(r)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if a.waitingItems != 0 || a.waitingIDs != 0 || a.waitingRequests.len() != 0 || a.inFlight != 0 || a.filling.len() != 0 || a.firstInLine.len() != 0 || a.awaitingTokens.len() != 0 ||
				len(a.batchQueues) != 0 || len(a.sendable) != 0 || len(a.tenants) != 0 || len(d.busy) != 0 || len(d.waitingByID) != 0 {
				t.Errorf("seed %d: something is left of requests that are gone: %+v", seed, a)
			}
			d.Close()
		})
		if t.Failed() {
			return
		}
	}
}

// checkQueues looks at every request that waits, and says why it should not.
func checkQueues(t *testing.T, seed uint64, d *Dispatcher, a *action) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	a.allocate(now)
	for _, bq := range a.batchQueues {
		if a.timeUntilOpen(bq, now) != 0 {
			continue
		}
		for _, q := range bq.tenants {
			items := slices.Clone(bq.arrivals.list)
			slices.SortFunc(items, func(x, y *Item) int {
				if x.before(y) {
					return -1
				}
				return 1
			})
			for _, it := range items {
				if it.queue != q || slices.ContainsFunc(it.IDs, func(id instance.ID) bool { return !it.Command.DryRun && d.busy[id] != nil }) {
					continue
				}
				if a.canAfford(q.tenant, it) || a.bucketFull() {
					t.Errorf("seed %d: %v of %s waited, and could be sent", seed, it.IDs, q.tenant.principal)
				}
				break
			}
		}
	}
}

// A request whose instance is busy does not hold up those behind it, and goes out once the
// instance is free.
func TestARequestForABusyInstanceHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, a := starts(t, Limit{1000, 100}, Limit{1000, 100})
		enqueue(t, d, startOf("a", id(1)))
		holder, _ := d.next()
		blocked := enqueue(t, d, startOf("a", id(1), id(2)))
		behind := enqueue(t, d, startOf("a", id(3)))
		time.Sleep(SlowCallAfter)
		second, _ := d.next()
		if second == nil || len(second.Items) != 1 || second.Items[0].Request != behind {
			t.Fatalf("beside the first batch goes %+v", second)
		}
		finish(d, holder)
		finish(d, second)
		third, _ := d.next()
		if third == nil || len(third.Items) != 1 || third.Items[0].Request != blocked {
			t.Fatalf("after the first batch goes %+v", third)
		}
		finish(d, third)
		if a.waitingItems != 0 || len(d.waitingByID) != 0 {
			t.Error("something still waits")
		}
		d.Close()
	})
}

// A tenant that had more of the calls than others comes after them.
func TestTheTenantWithTheLeastVirtualTimeIsNext(t *testing.T) {
	d, a := starts(t, Limit{1000, 100}, Limit{1e6, 1e6})
	a.maxIDs = 1
	for n := range 3 {
		enqueue(t, d, startOf("busy", id(n)))
	}
	enqueue(t, d, startOf("quiet", id(10)))
	var order []string
	for range 4 {
		b, _ := d.next()
		order = append(order, b.Items[0].Command.Principal)
		finish(d, b)
	}
	if want := []string{"busy", "quiet", "busy", "busy"}; !slices.Equal(order, want) {
		t.Errorf("the order is %v, want %v", order, want)
	}
}

func TestCloseEndsNextAndFailsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := starts(t, Limit{1, 0.001}, Limit{1000, 100})
		ctx, ended := context.WithCancel(t.Context())
		go func() {
			carryOut(d, 0)
			ended()
		}()
		sent := enqueue(t, d, startOf("a", id(1)))
		<-sent.Done()
		waiting := enqueue(t, d, startOf("a", id(2)))
		d.Close()
		<-ctx.Done()
		<-waiting.Done()
		if _, err := waiting.Result(); err == nil || err.Reason != instance.ReasonBackendClosing {
			t.Errorf("what waited ends with %v", err)
		}
		if err := d.Enqueue(NewRequest(startOf("a", id(3)), time.Time{})); err == nil || err.Reason != instance.ReasonBackendClosing {
			t.Errorf("a request after the end is told %v", err)
		}
	})
}
