package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

const (
	// liveCheckInterval is the progress interval of the subscribers, and liveCheckSlack how
	// much later a progress message may arrive.
	liveCheckInterval = time.Second
	liveCheckSlack    = 10 * time.Second
	// maxMessages is the maximum number of messages a flakySubscriber receives before it is
	// cut off.
	maxMessages = 6
)

// liveCheck watches a service for a while with several subscribers and compares what they
// receive.
type liveCheck struct {
	client *client.Client
	period time.Duration
}

// flakySubscriber is cut off and resumes again and again.
type flakySubscriber struct {
	filter      *instancedv1.InstanceFilter
	connections []*conformance.Connection
}

func (v *liveCheck) run(ctx context.Context) (*verification, error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	steady := conformance.Follow(v.request(nil, ""), v.client.Watch(ctx, v.request(nil, "")))
	begun, err := steady.Until(ctx, conformance.SnapshotSeen)
	if err != nil {
		return nil, failureOf(begun, err)
	}
	subscribers, err := v.followAll(ctx, liveCheckFilters(begun))
	if err != nil {
		return nil, err
	}
	// Everything that the others received is at or before the current end of the log.
	info, err := v.client.Info(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := steady.UntilCursor(ctx, info.GetCursor())
	if err != nil {
		return nil, failureOf(seen, err)
	}
	return v.judge(ctx, seen, subscribers)
}

// failureOf returns the error of the stream if it has ended, else err.
func failureOf(c *conformance.Connection, err error) error {
	if c.Err != nil {
		return c.Err
	}
	return err
}

func (v *liveCheck) request(filter *instancedv1.InstanceFilter, after string) *instancedv1.WatchInstancesRequest {
	return &instancedv1.WatchInstancesRequest{AfterCursor: after, Filter: filter, ProgressInterval: durationpb.New(liveCheckInterval)}
}

// liveCheckFilters returns filters that some changes of the fleet are likely to match.
func liveCheckFilters(c *conformance.Connection) []*instancedv1.InstanceFilter {
	states := func(names ...instancedv1.InstanceStateName) *instancedv1.InstanceFilter {
		return &instancedv1.InstanceFilter{States: names}
	}
	filters := []*instancedv1.InstanceFilter{
		nil,
		states(instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING),
		states(instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING, instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING),
	}
	tags := map[[2]string]int{}
	for _, m := range c.Messages {
		for _, i := range m.GetSnapshot().GetInstances() {
			for key, value := range i.GetTags() {
				tags[[2]string{key, value}]++
			}
		}
	}
	if len(tags) > 0 {
		common := slices.MaxFunc(slices.Collect(maps.Keys(tags)), func(a, b [2]string) int { return tags[a] - tags[b] })
		filters = append(filters, &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: common[0], Values: common[1:]}}})
	}
	return filters
}

// followAll runs one subscriber for each filter until the period ends.
func (v *liveCheck) followAll(ctx context.Context, filters []*instancedv1.InstanceFilter) ([]*flakySubscriber, error) {
	end := time.Now().Add(v.period)
	var (
		subscribers []*flakySubscriber
		running     sync.WaitGroup
		mu          sync.Mutex
		errs        []error
	)
	for _, filter := range filters {
		r := &flakySubscriber{filter: filter}
		subscribers = append(subscribers, r)
		running.Go(func() {
			if err := v.follow(ctx, r, end); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	running.Wait()
	return subscribers, errors.Join(errs...)
}

// follow subscribes, disconnects after some messages and resumes after the last cursor,
// until end.
func (v *liveCheck) follow(ctx context.Context, r *flakySubscriber, end time.Time) error {
	for after := ""; time.Now().Before(end); {
		req := v.request(r.filter, after)
		within, leave := context.WithDeadline(ctx, end)
		c, err := conformance.Follow(req, first(1+rand.IntN(maxMessages), v.client.Watch(within, req))).End(ctx) //nolint:gosec // where a stream is cut is no secret
		leave()
		if err != nil {
			return err
		}
		if failed, ok := errors.AsType[*client.Error](c.Err); ok && within.Err() == nil {
			return failed
		}
		if len(c.Messages) > 0 {
			r.connections = append(r.connections, c)
			after = c.Cursor()
		}
	}
	return ctx.Err()
}

// first yields the first n messages.
func first(n int, seq iter.Seq2[*instancedv1.WatchInstancesResponse, error]) iter.Seq2[*instancedv1.WatchInstancesResponse, error] {
	return func(yield func(*instancedv1.WatchInstancesResponse, error) bool) {
		for m, err := range seq {
			if n--; !yield(m, err) || n == 0 {
				return
			}
		}
	}
}

// judge compares what the subscribers received.
func (v *liveCheck) judge(ctx context.Context, steady *conformance.Connection, subscribers []*flakySubscriber) (*verification, error) {
	now := time.Now()
	log, err := conformance.NewLog(steady)
	if err != nil {
		return nil, fmt.Errorf("the subscriber that was never cut off: %w", err)
	}
	history, err := historyOf(ctx, v.client, conformance.Mentioned(steady), log.Begin())
	if err != nil {
		return nil, err
	}
	// No subscriber has seen what was recorded after the end of the log.
	history = slices.DeleteFunc(history, func(e *instancedv1.Event) bool { return e.GetRevision() > log.Head() })
	findings := [][]conformance.Finding{conformance.Against(log, steady), {
		{Promise: "Progress", Err: conformance.Progress(steady, now, liveCheckSlack)},
		{Promise: "History", Checked: len(history), Unit: "event", Err: log.Agrees(history)},
	}}
	cuts := 0
	for _, r := range subscribers {
		cuts += len(r.connections)
		findings = append(findings, conformance.Against(log, r.connections...))
	}
	out := &verification{
		Checked: fmt.Sprintf("Watched for %v: %s, %s, %s.", v.period,
			Counted(len(subscribers)+1, "subscriber"), Counted(cuts, "cut"), Counted(len(log.Matching(nil, 0, log.Head())), "recorded change")),
	}
	out.add(conformance.Together(findings...))
	return out, nil
}
