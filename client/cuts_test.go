package client_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// cutLog serves a log of batches, each with a cursor of its revision, in messages of one
// event or several, and ends each stream after a random number of messages.
type cutLog struct {
	random  *rand.Rand
	batches [][]*instancedv1.Event
	// instances are sent one a message before the first batch.
	instances []string
}

func (l *cutLog) watch(req *instancedv1.WatchInstancesRequest, out grpc.ServerStreamingServer[instancedv1.WatchInstancesResponse]) error {
	left := l.random.IntN(8)
	send := func(msg *instancedv1.WatchInstancesResponse) error {
		if left--; left < 0 {
			return []error{nil, errGone}[l.random.IntN(2)]
		}
		return out.Send(msg)
	}
	if err := out.Send(subscribed(req.GetAfterCursor())); err != nil {
		return err
	}
	from := 0
	if cursor := req.GetAfterCursor(); cursor != "" {
		if _, err := fmt.Sscan(cursor, &from); err != nil {
			return err
		}
	} else {
		for i, id := range l.instances {
			last, cursor := i == len(l.instances)-1, ""
			if last {
				cursor = "0"
			}
			if err := send(snapshot(cursor, i == 0, last, id)); err != nil || left < 0 {
				return err
			}
		}
	}
	for revision := from + 1; revision <= len(l.batches); revision++ {
		batch, cursor := l.batches[revision-1], ""
		for len(batch) > 0 {
			n := 1 + l.random.IntN(len(batch))
			if n == len(batch) {
				cursor = fmt.Sprint(revision)
			}
			msg := events(cursor, uint64(revision))
			msg.GetEvents().Events, batch = batch[:n], batch[n:]
			if err := send(msg); err != nil || left < 0 {
				return err
			}
		}
	}
	<-out.Context().Done()
	return out.Context().Err()
}

func TestWhereverStreamsAreCutEverythingComesOnce(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			l := &cutLog{random: random, instances: []string{"i-1", "i-2", "i-3"}}
			var want []string
			for revision := range 1 + random.IntN(20) {
				batch := events("", uint64(revision+1), []uint32{0, 1, 2, 3}[:1+random.IntN(4)]...).GetEvents().GetEvents()
				l.batches = append(l.batches, batch)
				want = append(want, fmt.Sprint(batch))
			}
			c, stop := dial(t, &service{watch: l.watch}, client.Options{})
			defer stop()

			var known, got []string
			for msg, err := range c.Watch(t.Context(), &instancedv1.WatchInstancesRequest{}) {
				if err != nil {
					t.Fatal(err)
				}
				if part := msg.GetSnapshot(); part != nil {
					if part.GetFirst() {
						known = nil
					}
					for _, i := range part.GetInstances() {
						known = append(known, i.GetInstanceId())
					}
				}
				if msg.GetEvents() != nil {
					if got = append(got, fmt.Sprint(msg.GetEvents().GetEvents())); msg.GetCursor() != fmt.Sprint(len(got)) {
						t.Errorf("batch %d has the cursor %q", len(got), msg.GetCursor())
					}
				}
				if len(got) == len(want) {
					break
				}
			}
			if diff := cmp.Diff(l.instances, known); diff != "" {
				t.Errorf("seed %d, snapshot: %s", seed, diff)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("seed %d: %s", seed, diff)
			}
		})
	}
}
