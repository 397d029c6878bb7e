package server_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// cutPoints is at how many random points streams are cut while others write: 10,000, of
// which a short run makes a fifth.
func cutPoints() int {
	if os.Getenv("INSTANCED_SOAK") != "" {
		return 10_000
	}
	return 2_000
}

// cutter is a subscriber whose streams are cut after a random number of messages.
type cutter struct {
	filter *instancedv1.InstanceFilter
	// maxMessages is after how many messages a stream is cut at the latest.
	maxMessages int
	// forgets is whether it begins with a snapshot again as soon as it has had a whole
	// one; else it goes on with its last cursor for ever. It ends after enough cuts
	// inside a snapshot.
	forgets bool
	enough  int
	// mayWait is whether a server may be unavailable for a while.
	mayWait bool

	lives [][]*conformance.Connection
	cuts  cuts
}

// cuts counts where streams were cut.
type cuts struct{ snapshot, batch, elsewhere int }

func (c *cuts) add(conn *conformance.Connection) {
	switch last := conn.Messages[len(conn.Messages)-1]; {
	case last.GetSnapshot() != nil && !last.GetSnapshot().GetLast():
		c.snapshot++
	case last.GetEvents() != nil && last.GetCursor() == "":
		c.batch++
	default:
		c.elsewhere++
	}
}

// run cuts streams until none of the cuts is left, and lets the bulk change from time to
// time.
func (c *cutter) run(t *testing.T, servers []*servertest.Server, left *atomic.Int64, bulkChanges chan<- struct{}, random *rand.Rand) {
	ctx := t.Context()
	var life []*conformance.Connection
	for n := left.Add(-1); n >= 0; n = left.Add(-1) {
		if n%100 == 0 {
			bulkChanges <- struct{}{}
		}
		req := c.request(life)
		server := servers[random.IntN(len(servers))]
		conn, err := cutAfter(ctx, server.Instances(), req, 1+random.IntN(c.maxMessages))
		if err != nil && c.mayWait && status.Code(err) == codes.Unavailable {
			left.Add(1)
			continue
		}
		if err != nil {
			t.Error(err)
			return
		}
		life = append(life, conn)
		c.cuts.add(conn)
		if c.forgets && conn.Cursor() != "" {
			c.lives = append(c.lives, life)
			life = nil
		}
		if c.forgets && c.cuts.snapshot >= c.enough {
			break
		}
	}
	c.lives = append(c.lives, life)
}

// flakyCutters returns one for each of the filters.
func flakyCutters(maxMessages int) []*cutter {
	var cutters []*cutter
	for name, filter := range filters() {
		c := &cutter{filter: filter, maxMessages: maxMessages}
		if name == "nothing" {
			c.maxMessages = 2 // the second is progress, which takes its time
		}
		cutters = append(cutters, c)
	}
	return cutters
}

func (c *cutter) request(life []*conformance.Connection) *instancedv1.WatchInstancesRequest {
	req := &instancedv1.WatchInstancesRequest{Filter: c.filter, ProgressInterval: durationpb.New(time.Second)}
	if len(life) > 0 {
		req.AfterCursor = life[len(life)-1].Cursor()
	}
	return req
}

// cutAfter subscribes and leaves after so many messages.
func cutAfter(ctx context.Context, client instancedv1.InstanceServiceClient, req *instancedv1.WatchInstancesRequest, messages int) (*conformance.Connection, error) {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	conn := &conformance.Connection{Request: req}
	stream, err := client.WatchInstances(ctx, req)
	if err != nil {
		return nil, err
	}
	for range messages {
		m, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("the stream ended by itself, after %d messages: %w", len(conn.Messages), err)
		}
		conn.Messages = append(conn.Messages, conformance.Message{WatchInstancesResponse: m})
	}
	return conn, nil
}

// keptPromises checks what the cutters got, after a last stream to the end of the log.
func keptPromises(t *testing.T, servers []*servertest.Server, cutters []*cutter, log *conformance.Log) cuts {
	t.Helper()
	last := make([]*conformance.Recorder, len(cutters))
	for n, c := range cutters {
		last[n] = watch(t, servers[n%len(servers)], c.request(c.lives[len(c.lives)-1]))
	}
	var all cuts
	for n, c := range cutters {
		life := &c.lives[len(c.lives)-1]
		*life = append(*life, passed(t, last[n], log))
		for _, life := range c.lives {
			if err := conformance.All(log, life...); err != nil {
				t.Errorf("cutter %d, %v: %v", n, c.filter, err)
				break
			}
		}
		all.snapshot += c.cuts.snapshot
		all.batch += c.cuts.batch
		all.elsewhere += c.cuts.elsewhere
	}
	return all
}

// bulk is a fleet of instances so large that neither a snapshot of them nor a change of
// all of them fits into one message.
func bulk() (*instancedv1.CreateInstancesRequest, []string) {
	const first, count = 100, 90
	req := &instancedv1.CreateInstancesRequest{}
	var ids []string
	for n := range count {
		tags := map[string]string{"team": "bulk"}
		for i := range 6 {
			tags[fmt.Sprint("note ", i)] = strings.Repeat("x", 250)
		}
		req.Instances = append(req.Instances, &instancedv1.InstanceSpec{InstanceId: id(first + n), Tags: tags})
		ids = append(ids, id(first+n))
	}
	return req, ids
}

func team(name string) *instancedv1.InstanceFilter {
	return &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "team", Values: []string{name}}}}
}

// writing has callers change a few instances all the time, and all of the bulk at once
// when that is asked for, until the returned function is called. Every change is recorded
// then, and it returns a cursor behind them.
func writing(t *testing.T, srv *servertest.Server, few, bulk []string, bulkChanges <-chan struct{}) (stop func() string) {
	t.Helper()
	ctx := t.Context()
	enough := make(chan struct{})
	var writers sync.WaitGroup
	for caller := range 2 {
		random := rand.New(rand.NewPCG(5, uint64(caller)))
		writers.Go(func() {
			for !closed(enough) {
				if _, err := something(ctx, srv, few, random); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-enough:
				return
			case <-bulkChanges:
			}
			_, err := srv.Simulator().ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{
				Changes: []*instancedv1.OutsideChange{{InstanceIds: bulk, SetTags: map[string]string{"n": fmt.Sprint(n)}}},
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
	return sync.OnceValue(func() string {
		close(enough)
		writers.Wait()
		return settled(t, srv, few)
	})
}

func TestStreamsThatAreCutAnywhereMissAndRepeatNothing(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	large, bulkIDs := bulk()
	if _, err := srv.Simulator().CreateInstances(patient(t), large); err != nil {
		t.Fatal(err)
	}
	all, err := conformance.Watch(t.Context(), srv.Instances(), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, all, conformance.SnapshotSeen)
	points := cutPoints()
	bulkChanges := make(chan struct{}, points)
	stop := writing(t, srv, ids(12), bulkIDs, bulkChanges)

	cutters := []*cutter{{filter: team("bulk"), maxMessages: 4, forgets: true, enough: points / 30}}
	for range 2 {
		cutters = append(cutters, flakyCutters(8)...)
		cutters = append(cutters, &cutter{filter: team("bulk"), maxMessages: 8})
	}
	var left atomic.Int64
	left.Store(int64(points))
	var cutting sync.WaitGroup
	for n, c := range cutters {
		cutting.Go(func() {
			c.run(t, []*servertest.Server{srv}, &left, bulkChanges, rand.New(rand.NewPCG(3, uint64(n))))
		})
	}
	cutting.Wait()
	log := logUpTo(t, all, stop())
	if err := log.Agrees(history(t, srv, append(ids(12), bulkIDs...), log.Begin())); err != nil {
		t.Error(err)
	}
	made := keptPromises(t, []*servertest.Server{srv}, cutters, log)
	t.Logf("%d changes; cut inside a snapshot %d times, inside a batch %d times, elsewhere %d times",
		len(log.Matching(nil, 0, log.Head())), made.snapshot, made.batch, made.elsewhere)
	if made.snapshot+made.batch+made.elsewhere != points || made.snapshot < points/30 || made.batch < points/200 {
		t.Errorf("the cuts are %+v, want %d, of which %d inside a snapshot and %d inside a batch", made, points, points/30, points/200)
	}
}
