// Package backendtest tests the contract of every backend: what callers of a
// lifecycle.Backend rely on. It holds in real time, so that it can be run against a backend
// that talks over a network.
package backendtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Needed is the number of instances that the backend must have at the beginning of each
// test: stopped, with an EBS root, unprotected, startable, and free for the tests to start,
// stop and terminate.
const Needed = 6

// storyTimeout is how long an instance may take to reach a state.
const storyTimeout = 10 * time.Minute

// missing are well-formed ids of instances that do not exist.
var missing = []instance.ID{"i-0fffffffffffffff0", "i-0fffffffffffffff1"}

// Run tests the backends that open returns, each in a subtest. They are already restored,
// and open's cleanup closes them.
func Run(t *testing.T, open func(t *testing.T) lifecycle.Backend) {
	t.Helper()
	tests := []struct {
		name string
		test func(*suite)
	}{
		{"Describe needs ids or all, not both", (*suite).describeNeedsAQuery},
		{"Describe leaves missing ids out", (*suite).describeLeavesMissingOut},
		{"Describe returns everything once, page by page", (*suite).describePages},
		{"a start goes from stopped over pending to running", (*suite).start},
		{"a stop goes from running over stopping to stopped", (*suite).stop},
		{"a termination ends in terminated", (*suite).terminate},
		{"a reboot leaves the instance running", (*suite).reboot},
		{"what is done already is answered with equal states", (*suite).repeat},
		{"answers come in the order asked for", (*suite).order},
		{"a missing instance refuses a whole call, which changes nothing", (*suite).wholeCall},
		{"a per-instance call answers for each instance", (*suite).perInstance},
		{"a state that forbids the command is a failed precondition", (*suite).precondition},
		{"a dry run changes nothing", (*suite).dryRun},
		{"of concurrent callers exactly one sees stopped", (*suite).claim},
		{"a command is reported as sent before it acts", (*suite).sent},
		{"a dry run, and what is canceled before, is not reported as sent", (*suite).notSent},
		{"a canceled call returns the error of its context", (*suite).canceled},
		{"notices end with their context", (*suite).noticesEnd},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, backend: open(t)}
			s.ids = s.stopped()
			test.test(s)
		})
	}
}

// suite is one test's backend and the instances that are its own.
type suite struct {
	*testing.T
	backend lifecycle.Backend
	ids     []instance.ID
}

func (s *suite) describeNeedsAQuery() {
	for _, query := range []instance.DescribeQuery{{}, {All: true, IDs: s.ids}} {
		_, err := s.backend.Describe(s.Context(), query)
		_ = s.wantKind(err, instance.KindInvalid)
	}
}

func (s *suite) describeLeavesMissingOut() {
	page, err := s.backend.Describe(s.Context(), instance.DescribeQuery{IDs: []instance.ID{missing[0], s.ids[0], missing[1]}})
	s.must(err)
	if len(page.Instances) != 1 || page.Instances[0].ID != s.ids[0] {
		s.Fatalf("%d instances, want %s alone", len(page.Instances), s.ids[0])
	}
}

func (s *suite) describePages() {
	seen := map[instance.ID]int{}
	for query := (instance.DescribeQuery{All: true, PageSize: 5}); ; {
		page, err := s.backend.Describe(s.Context(), query)
		s.must(err)
		if len(page.Instances) > query.PageSize {
			s.Fatalf("%d instances on a page of %d", len(page.Instances), query.PageSize)
		}
		for _, inst := range page.Instances {
			seen[inst.ID]++
		}
		if query.PageToken = page.NextPageToken; query.PageToken == "" {
			break
		}
	}
	for _, id := range s.ids {
		if seen[id] != 1 {
			s.Errorf("%s came %d times", id, seen[id])
		}
	}
}

func (s *suite) start() {
	id := s.ids[0]
	change := s.one(instance.VerbStart, id)
	s.wantChange(change, id, instance.StateStopped, instance.StatePending)
	inst := s.await(id, instance.StateRunning)
	if inst.StateReason != nil || inst.LaunchTime.IsZero() || inst.PrivateIPAddress == "" {
		s.Errorf("a running instance is %+v", inst)
	}
}

func (s *suite) stop() {
	id := s.running(0)
	s.wantChange(s.one(instance.VerbStop, id), id, instance.StateRunning, instance.StateStopping)
	inst := s.await(id, instance.StateStopped)
	if inst.StateReason == nil || inst.StateReason.Code != "Client.UserInitiatedShutdown" {
		s.Errorf("state reason is %v", inst.StateReason)
	}
}

func (s *suite) terminate() {
	id := s.ids[0]
	change := s.one(instance.VerbTerminate, id)
	if change.Previous != instance.StateStopped || change.Current != instance.StateShuttingDown && change.Current != instance.StateTerminated {
		s.Errorf("change is %s -> %s", change.Previous, change.Current)
	}
	s.await(id, instance.StateTerminated)
	if again := s.one(instance.VerbTerminate, id); again.Current != instance.StateTerminated {
		s.Errorf("a second termination answers %s", again.Current)
	}
}

func (s *suite) reboot() {
	id := s.running(0)
	s.wantChange(s.one(instance.VerbReboot, id), id, instance.StateRunning, instance.StateRunning)
	s.await(id, instance.StateRunning)
}

func (s *suite) repeat() {
	s.wantChange(s.one(instance.VerbStop, s.ids[0]), s.ids[0], instance.StateStopped, instance.StateStopped)
	id := s.running(1)
	s.wantChange(s.one(instance.VerbStart, id), id, instance.StateRunning, instance.StateRunning)
}

func (s *suite) order() {
	ids := slices.Clone(s.ids[:4])
	slices.Reverse(ids)
	result, err := s.execute(instance.Command{Verb: instance.VerbStart, IDs: ids})
	s.must(err)
	var got []instance.ID
	for _, c := range result.Changes {
		got = append(got, c.ID)
	}
	if !slices.Equal(got, ids) {
		s.Errorf("answers are for %v, want %v", got, ids)
	}
}

func (s *suite) wholeCall() {
	result, err := s.execute(instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{s.ids[0], missing[0], missing[1]}})
	e := s.wantKind(err, instance.KindNotFound)
	if e.Code != instance.CodeNotFound || !slices.Equal(e.InstanceIDs, missing) || len(result.Changes) != 0 {
		s.Errorf("error is %v, names %v; result is %+v", e, e.InstanceIDs, result)
	}
	if inst := s.describe(s.ids[0]); inst.State != instance.StateStopped {
		s.Errorf("%s is %s", inst.ID, inst.State)
	}
}

func (s *suite) perInstance() {
	result, err := s.execute(instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{missing[0], s.ids[0]}, PerInstance: true})
	s.must(err)
	if len(result.Changes) != 1 || len(result.Failures) != 1 {
		s.Fatalf("result is %+v, want a change and a failure", result)
	}
	s.wantChange(result.Changes[0], s.ids[0], instance.StateStopped, instance.StatePending)
	if f := result.Failures[0]; f.ID != missing[0] || f.Err.Kind != instance.KindNotFound {
		s.Errorf("failure is %+v", f)
	}
	result, err = s.execute(instance.Command{Verb: instance.VerbStart, IDs: missing, PerInstance: true})
	s.must(err)
	if len(result.Changes) != 0 || len(result.Failures) != len(missing) {
		s.Errorf("result is %+v, want failures alone", result)
	}
}

func (s *suite) precondition() {
	id := s.ids[0]
	s.one(instance.VerbTerminate, id)
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop} {
		_, err := s.execute(instance.Command{Verb: verb, IDs: []instance.ID{id}})
		e := s.wantKind(err, instance.KindPrecondition)
		if e.Code != instance.CodeIncorrectInstanceState || !slices.Equal(e.InstanceIDs, []instance.ID{id}) {
			s.Errorf("%s: error is %v, names %v", verb, e, e.InstanceIDs)
		}
	}
}

func (s *suite) dryRun() {
	for _, perInstance := range []bool{false, true} {
		result, err := s.execute(instance.Command{Verb: instance.VerbStart, IDs: s.ids[:1], DryRun: true, PerInstance: perInstance})
		_ = s.wantKind(err, instance.KindDryRun)
		if len(result.Changes)+len(result.Failures) != 0 {
			s.Errorf("result is %+v", result)
		}
	}
	if inst := s.describe(s.ids[0]); inst.State != instance.StateStopped {
		s.Errorf("%s is %s", inst.ID, inst.State)
	}
}

func (s *suite) claim() {
	const callers = 8
	saw := make(chan instance.State, callers)
	for range callers {
		go func() {
			result, err := s.execute(instance.Command{Verb: instance.VerbStart, IDs: s.ids[:1]})
			if err != nil || len(result.Changes) != 1 {
				s.Errorf("result is %+v, %v", result, err)
				saw <- instance.StateUnspecified
				return
			}
			saw <- result.Changes[0].Previous
		}()
	}
	stopped := 0
	for range callers {
		if <-saw == instance.StateStopped {
			stopped++
		}
	}
	if stopped != 1 {
		s.Errorf("%d callers saw stopped", stopped)
	}
}

func (s *suite) canceled() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, err := s.backend.Execute(ctx, instance.Command{Verb: instance.VerbStart, IDs: s.ids[:1]})
	if !errors.Is(err, context.Canceled) {
		s.Errorf("Execute: error is %v", err)
	}
	if _, err := s.backend.Describe(ctx, instance.DescribeQuery{All: true}); !errors.Is(err, context.Canceled) {
		s.Errorf("Describe: error is %v", err)
	}
}

// sent has the same instances started by two callers, of which one names a missing instance.
func (s *suite) sent() {
	for _, cmd := range []instance.Command{
		{Verb: instance.VerbStart, IDs: s.ids[:2]},
		{Verb: instance.VerbStart, IDs: []instance.ID{s.ids[2], missing[0], s.ids[1]}, PerInstance: true},
		{Verb: instance.VerbStop, IDs: s.ids[3:5]},
		{Verb: instance.VerbTerminate, IDs: s.ids[3:5]},
	} {
		sentAt, over := make(map[instance.ID]time.Time), false
		cmd.Sent = func(ids []instance.ID) {
			for _, id := range ids {
				if !slices.Contains(cmd.IDs, id) || over {
					s.Errorf("%s: %s is reported as sent", cmd.Verb, id)
				}
				sentAt[id] = time.Now()
			}
		}
		cmd.Requeued = func(ids []instance.ID) {
			for _, id := range ids {
				delete(sentAt, id)
			}
		}
		result, err := s.execute(cmd)
		over = true
		s.must(err)
		if want := len(cmd.IDs) - len(result.Failures); len(result.Changes) != want || want < 2 {
			s.Errorf("%s: result is %+v", cmd.Verb, result)
		}
		for _, change := range result.Changes {
			if at, ok := sentAt[change.ID]; !ok || change.At.Before(at.Round(0)) {
				s.Errorf("%s: %s acted at %v, and was reported as sent at %v", cmd.Verb, change.ID, change.At, at)
			}
		}
	}
}

func (s *suite) notSent() {
	for _, perInstance := range []bool{false, true} {
		cmd := instance.Command{Verb: instance.VerbStart, IDs: s.ids[:2], PerInstance: perInstance}
		cmd.Sent = func(ids []instance.ID) { s.Errorf("%v are reported as sent", ids) }
		dry := cmd
		dry.DryRun = true
		_, err := s.execute(dry)
		_ = s.wantKind(err, instance.KindDryRun)
		ctx, cancel := context.WithCancel(s.Context())
		cancel()
		if _, err := s.backend.Execute(ctx, cmd); !errors.Is(err, context.Canceled) {
			s.Errorf("error is %v", err)
		}
	}
}

// noticesEnd starts an instance meanwhile. That a notice of it comes is not
// promised; that each can be acknowledged is.
func (s *suite) noticesEnd() {
	ctx, cancel := context.WithTimeout(s.Context(), time.Second)
	defer cancel()
	s.one(instance.VerbStart, s.ids[0])
	for notice, err := range s.backend.Notices(ctx) {
		if err != nil {
			continue
		}
		if notice.ID == "" || notice.State == instance.StateUnspecified || notice.Source == instance.SourceUnspecified {
			s.Errorf("notice is %+v", notice)
		}
		notice.Ack()
	}
	if ctx.Err() == nil {
		s.Error("the notices ended before their context")
	}
}
