package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	running      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	stopped      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
	shuttingDown = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN
	terminated   = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_TERMINATED

	// askFor is how long to ask whether a machine was started.
	askFor = time.Minute

	// changeWithin is how long a machine may take to start or to stop.
	changeWithin = 15 * time.Minute
	// lookAgainAfter is when a pool without a free machine is looked at again although
	// none was heard to stop: one that EC2 had no capacity for may start now.
	lookAgainAfter = 30 * time.Second
)

// pool is a set of machines that programs take turns to use. There is no lock: of all who
// start a stopped instance at the same time exactly one is told that it was stopped
// before, and the machine is theirs until they stop it.
type pool struct {
	client *client.Client
	filter *instancedv1.InstanceFilter

	mu sync.Mutex
	// broken are the machines that did not start, and are left alone from then on.
	broken map[string]string
}

// machine is one that runs.
type machine struct{ id, address string }

func newPool(c *client.Client, name string) *pool {
	return &pool{
		client: c,
		filter: &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "pool", Values: []string{name}}}},
		broken: make(map[string]string),
	}
}

// claim starts a machine that is not in use, and waits for one if need be.
func (p *pool) claim(ctx context.Context) (machine, error) {
	for {
		free, cursor, err := p.free(ctx)
		if err != nil {
			return machine{}, err
		}
		// In no particular order, so that not all who claim try the same one.
		for _, n := range mathrand.Perm(len(free)) { //nolint:gosec // it guards nothing
			if m, err := p.take(ctx, free[n]); m.id != "" || err != nil {
				return m, err
			}
		}
		if err := p.awaitStopped(ctx, cursor); err != nil {
			return machine{}, err
		}
	}
}

// free returns the machines that are stopped, and the cursor of when that was so.
func (p *pool) free(ctx context.Context) (ids []string, cursor string, err error) {
	usable := 0
	for page, err := range p.client.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: p.filter}) {
		if err != nil {
			return nil, "", err
		}
		if cursor == "" {
			cursor = page.GetCursor()
		}
		for _, i := range page.GetInstances() {
			state := i.GetState().GetName()
			if state == shuttingDown || state == terminated || p.isBroken(i.GetInstanceId()) {
				continue
			}
			usable++
			if state == stopped {
				ids = append(ids, i.GetInstanceId())
			}
		}
	}
	if usable == 0 {
		return nil, "", fmt.Errorf("the pool has no machine that starts%s", p.whyNone())
	}
	return ids, cursor, nil
}

// take starts a machine and waits until it runs. It returns none if somebody else was
// first, or if this one cannot be started.
func (p *pool) take(ctx context.Context, id string) (machine, error) {
	started, err := p.start(ctx, id)
	if e, ok := errors.AsType[*client.Error](err); ok && (e.Code == codes.FailedPrecondition || e.Code == codes.ResourceExhausted) {
		return machine{}, nil // it is being stopped, or there is no capacity for it
	}
	if err != nil {
		return machine{}, err
	}
	if started.GetStartingInstances()[0].GetPreviousState().GetName() != stopped {
		return machine{}, nil // somebody else was told that it was stopped
	}
	result, err := p.await(ctx, id, running, started.GetCursor())
	switch {
	case err != nil:
		return machine{}, errors.Join(err, p.release(context.WithoutCancel(ctx), id))
	case result.GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
		return machine{id, result.GetInstance().GetPrivateIpAddress()}, nil
	case result.GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE:
		p.setBroken(id, cmp.Or(result.GetStateReason().GetMessage(), "it fell back to stopped"))
		return machine{}, nil
	default:
		p.setBroken(id, "it did not start in time")
		return machine{}, p.release(ctx, id)
	}
}

// start starts a machine. While the outcome is unknown it retries, also when
// this program is told to end: with the same token that tells what became of the first
// try, and a machine that was started has to be stopped.
func (p *pool) start(ctx context.Context, id string) (*instancedv1.StartInstancesResponse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askFor)
	defer cancel()
	req := &instancedv1.StartInstancesRequest{InstanceIds: []string{id}, ClientToken: rand.Text()}
	for {
		resp, err := p.client.Start(ctx, req)
		if e, ok := errors.AsType[*client.Error](err); !ok || !e.OutcomeUnknown || ctx.Err() != nil {
			return resp, err
		}
	}
}

// release stops a machine and returns when others can claim it.
func (p *pool) release(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	stopping, err := p.client.Stop(ctx, &instancedv1.StopInstancesRequest{InstanceIds: []string{id}})
	if err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	result, err := p.await(ctx, id, stopped, stopping.GetCursor())
	if err == nil && result.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
		err = errors.New(result.GetOutcome().String())
	}
	if err != nil {
		return fmt.Errorf("wait until %s is stopped: %w", id, err)
	}
	return nil
}

func (p *pool) await(ctx context.Context, id string, state instancedv1.InstanceStateName, after string) (*instancedv1.WaitResult, error) {
	waited, err := p.client.Wait(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{id},
		States:      []instancedv1.InstanceStateName{state},
		AfterCursor: after,
		Timeout:     durationpb.New(changeWithin),
	})
	if err != nil {
		return nil, err
	}
	return waited.GetResults()[0], nil
}

// awaitStopped returns when some machine of the pool has stopped since the cursor, or
// after a while.
func (p *pool) awaitStopped(ctx context.Context, cursor string) error {
	watching, cancel := context.WithTimeout(ctx, lookAgainAfter)
	defer cancel()
	for msg, err := range p.client.Watch(watching, &instancedv1.WatchInstancesRequest{AfterCursor: cursor, Filter: p.filter}) {
		if watching.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		for _, e := range msg.GetEvents().GetEvents() {
			if e.GetInstance().GetState().GetName() == stopped {
				return nil
			}
		}
	}
	return ctx.Err()
}

func (p *pool) setBroken(id, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken[id] = why
}

func (p *pool) isBroken(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, broken := p.broken[id]
	return broken
}

func (p *pool) whyNone() (why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, reason := range p.broken {
		why += fmt.Sprintf("; %s: %s", id, reason)
	}
	return why
}
