package soak_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

const (
	pending      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING
	running      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	shuttingDown = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN
	stopping     = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING
	stopped      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
)

var transitional = []instancedv1.InstanceStateName{pending, stopping, shuttingDown}

// historian reads the history again and again, whenever anybody answers, and checks that
// it only ever grows.
type historian struct {
	instances instancedv1.InstanceServiceClient
	ids       []string
	after     string

	stop  context.CancelFunc
	done  sync.WaitGroup
	mu    sync.Mutex
	last  []*instancedv1.Event // the longest so far; guarded by mu
	reads int                  // guarded by mu
	err   error                // guarded by mu
}

func startHistorian(ctx context.Context, instances instancedv1.InstanceServiceClient, ids []string, after string) *historian {
	h := &historian{instances: instances, ids: ids, after: after}
	ctx, h.stop = context.WithCancel(ctx)
	h.done.Go(func() {
		for ctx.Err() == nil {
			h.read(ctx)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	return h
}

func (h *historian) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	read, err := conformance.History(ctx, h.instances, h.ids, h.after)
	if err != nil {
		return // no process serves at the moment
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	// A process that lags, or is parted from etcd, has less to tell. What was read once has to
	// be there in the end.
	less, more := h.last, read
	if len(read) < len(h.last) {
		less, more = read, h.last
	}
	if h.err == nil {
		h.err = conformance.Durable(less, more)
	}
	h.last = more
}

func (h *historian) end() {
	h.stop()
	h.done.Wait()
}

// settle waits until nothing is in transition, and returns all instances as they are
// then and where the log ends.
func settle(t *testing.T, instances instancedv1.InstanceServiceClient) (map[string]*instancedv1.Instance, string) {
	t.Helper()
	var all map[string]*instancedv1.Instance
	var cursor string
	await(t, "all transitions end", func() bool {
		resp, err := instances.DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{PageSize: 1000})
		if err != nil {
			return false
		}
		all, cursor = map[string]*instancedv1.Instance{}, resp.GetCursor()
		for _, i := range resp.GetInstances() {
			all[i.GetInstanceId()] = i
			if slices.Contains(transitional, i.GetState().GetName()) {
				return false
			}
		}
		return true
	})
	return all, cursor
}

// outcome is all that a campaign has to show in the end.
type outcome struct {
	log      *conformance.Log
	history  []*instancedv1.Event
	requests []*request
}

// check compares what was answered with what is recorded.
func (o *outcome) check() error {
	if err := o.log.Agrees(o.history); err != nil {
		return err
	}
	caused := map[string][]*instancedv1.Event{}
	tagged := map[string]bool{}
	for _, e := range o.history {
		id := e.GetCause().GetRequestId()
		caused[id] = append(caused[id], e)
		for _, value := range e.GetInstance().GetTags() {
			tagged[e.GetInstance().GetInstanceId()+" "+value] = true
		}
	}
	var errs []error
	// No state is changed from outside, so each change has a command as its cause.
	for _, e := range o.history {
		if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED && e.GetCause().GetRequestId() == "" {
			errs = append(errs, fmt.Errorf("no command caused event %d.%d: %s from %v to %v, inferred %v", e.GetRevision(), e.GetIndex(),
				e.GetInstance().GetInstanceId(), e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName(), e.GetInferred()))
		}
	}
	for _, r := range o.requests {
		if err := o.checkRequest(r, caused[r.id], tagged); err != nil {
			errs = append(errs, fmt.Errorf("%v, asked %d times: %w", r, r.attempts, err))
		}
	}
	return errors.Join(errs...)
}

func (o *outcome) checkRequest(r *request, caused []*instancedv1.Event, tagged map[string]bool) error {
	if r.verb == outside {
		for _, id := range r.ids {
			if r.answer != nil && !tagged[id+" "+r.id] {
				return fmt.Errorf("a change from outside was acknowledged, and %s never had it", id)
			}
		}
		return nil
	}
	for _, e := range caused {
		if c := e.GetCause(); c.GetVerb() != r.verb || c.GetClientToken() != r.token || c.GetPrincipal() != "soak" || !slices.Contains(r.ids, e.GetInstance().GetInstanceId()) {
			return fmt.Errorf("event %d.%d has another cause: %v", e.GetRevision(), e.GetIndex(), c)
		}
	}
	for _, id := range r.ids {
		if n := len(begun(caused, id, r.verb)); n > 1 {
			return fmt.Errorf("it was carried out %d times on %s", n, id)
		}
	}
	if r.answer == nil {
		// A refusal that says so has changed nothing, whatever was tried before it.
		if len(caused) > 0 && (r.token == "" && r.lost == 0 || !worthRetrying(r.err) && !outcomeUnknown(r.err)) {
			return fmt.Errorf("it was refused with %w, and caused %d events", r.err, len(caused))
		}
		return nil
	}
	return o.checkAnswer(r, caused)
}

// begun are the events in which a verb took hold of an instance.
func begun(caused []*instancedv1.Event, id, verb string) (events []*instancedv1.Event) {
	target := map[string]instancedv1.InstanceStateName{startInstances: pending, stopInstances: stopping}[verb]
	for _, e := range caused {
		if e.GetInstance().GetInstanceId() == id && e.GetInstance().GetState().GetName() == target &&
			e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
			events = append(events, e)
		}
	}
	return events
}

// checkAnswer checks that what a caller was told is recorded, and between the cursors
// that it was given.
func (o *outcome) checkAnswer(r *request, caused []*instancedv1.Event) error {
	after, err := o.log.Revision(r.answer.cursor)
	if err != nil {
		return err
	}
	upTo, err := o.log.Revision(r.answer.behind)
	if err != nil {
		return err
	}
	if len(r.answer.changes)+len(r.answer.failed) != len(r.ids) {
		return fmt.Errorf("the answer has %d changes and %d failures", len(r.answer.changes), len(r.answer.failed))
	}
	for _, change := range r.answer.changes {
		events := begun(caused, change.GetInstanceId(), r.verb)
		if proto.Equal(change.GetPreviousState(), change.GetCurrentState()) {
			// It was so already, or an earlier try was carried out and its answer lost.
			if len(events) > 0 && (r.token == "" || r.attempts == 1) {
				return fmt.Errorf("the caller was told that %s was %v, and changed it", change.GetInstanceId(), change.GetCurrentState().GetName())
			}
			continue
		}
		if len(events) != 1 {
			return fmt.Errorf("the caller was told that %s went from %v to %v, and %d events say so", change.GetInstanceId(),
				change.GetPreviousState().GetName(), change.GetCurrentState().GetName(), len(events))
		}
		e := events[0]
		if !proto.Equal(e.GetPreviousState(), change.GetPreviousState()) || !proto.Equal(e.GetInstance().GetState(), change.GetCurrentState()) {
			return fmt.Errorf("the caller was told %v, and recorded is %v", change, e)
		}
		if e.GetRevision() <= after || e.GetRevision() > upTo {
			return fmt.Errorf("event %d.%d is not between the cursors of the answer, behind %d and %d", e.GetRevision(), e.GetIndex(), after, upTo)
		}
	}
	return nil
}

// sameAgain retries requests that were answered under client tokens, and checks that each
// retry gets the first response.
func (l *load) sameAgain(t *testing.T, limit int) int {
	t.Helper()
	asked := 0
	for _, r := range slices.Backward(l.done()) {
		if r.token == "" || r.answer == nil || asked == limit {
			continue
		}
		asked++
		again := &request{id: r.id + "-again", verb: r.verb, ids: r.ids, mode: r.mode, token: r.token}
		l.carryOut(patient(t), again)
		if again.answer == nil {
			t.Errorf("%v: asked again: %v", r, again.err)
			continue
		}
		if err := sameAnswer(again.answer, r.answer); err != nil {
			t.Errorf("%v: asked again: %v", r, err)
		}
	}
	return asked
}

func sameAnswer(got, want *answer) error {
	if got.cursor != want.cursor || got.behind != want.behind {
		return fmt.Errorf("the cursors are %q and %q, and were %q and %q", got.cursor, got.behind, want.cursor, want.behind)
	}
	if !slices.EqualFunc(got.changes, want.changes, func(a, b *instancedv1.InstanceStateChange) bool { return proto.Equal(a, b) }) ||
		!slices.EqualFunc(got.failed, want.failed, func(a, b *instancedv1.InstanceFailure) bool { return proto.Equal(a, b) }) {
		return fmt.Errorf("the answer is %v and %v, and was %v and %v", got.changes, got.failed, want.changes, want.failed)
	}
	return nil
}
