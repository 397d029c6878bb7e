package backendtest

import (
	"errors"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// stopped returns the ids of the instances that the tests may use.
func (s *suite) stopped() []instance.ID {
	s.Helper()
	var ids []instance.ID
	for query := (instance.DescribeQuery{All: true}); ; {
		page, err := s.backend.Describe(s.Context(), query)
		s.must(err)
		for _, inst := range page.Instances {
			if inst.State == instance.StateStopped {
				ids = append(ids, inst.ID)
			}
		}
		if query.PageToken = page.NextPageToken; query.PageToken == "" {
			break
		}
	}
	if len(ids) < Needed {
		s.Fatalf("the backend has %d stopped instances, want %d", len(ids), Needed)
	}
	return ids
}

// running starts an instance and waits for it.
func (s *suite) running(n int) instance.ID {
	s.Helper()
	s.one(instance.VerbStart, s.ids[n])
	s.await(s.ids[n], instance.StateRunning)
	return s.ids[n]
}

func (s *suite) execute(cmd instance.Command) (instance.Result, error) {
	return s.backend.Execute(s.Context(), cmd)
}

// one executes a verb on one instance, which is to succeed.
func (s *suite) one(verb instance.Verb, id instance.ID) instance.StateChange {
	s.Helper()
	result, err := s.execute(instance.Command{Verb: verb, IDs: []instance.ID{id}})
	s.must(err)
	if len(result.Changes) != 1 || len(result.Failures) != 0 {
		s.Fatalf("result is %+v, want one change", result)
	}
	return result.Changes[0]
}

func (s *suite) describe(id instance.ID) *instance.Instance {
	s.Helper()
	page, err := s.backend.Describe(s.Context(), instance.DescribeQuery{IDs: []instance.ID{id}})
	s.must(err)
	if len(page.Instances) != 1 {
		s.Fatalf("%s is described by %d instances", id, len(page.Instances))
	}
	return page.Instances[0]
}

// await polls until an instance is in a state. Each state on the way has to be
// able to follow from the one before it.
func (s *suite) await(id instance.ID, want instance.State) *instance.Instance {
	s.Helper()
	before := instance.StateUnspecified
	for deadline, pause := time.Now().Add(storyTimeout), time.Millisecond; ; pause = min(2*pause, time.Second) {
		inst := s.describe(id)
		if inst.State == want {
			return inst
		}
		if before != instance.StateUnspecified && !instance.Reachable(before, inst.State) {
			s.Fatalf("%s went from %s to %s", id, before, inst.State)
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s is %s after %v, want %s", id, inst.State, storyTimeout, want)
		}
		before = inst.State
		time.Sleep(pause)
	}
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) wantKind(err error, kind instance.Kind) *instance.Error {
	s.Helper()
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Kind != kind {
		s.Fatalf("error is %v, want one of kind %d", err, kind)
	}
	return e
}

func (s *suite) wantChange(c instance.StateChange, id instance.ID, from, to instance.State) {
	s.Helper()
	if c.ID != id || c.Previous != from || c.Current != to {
		s.Errorf("change is %s: %s -> %s, want %s: %s -> %s", c.ID, c.Previous, c.Current, id, from, to)
	}
	if c.After != nil && (c.After.ID != id || c.After.State != to) {
		s.Errorf("the instance after it is %s, %s", c.After.ID, c.After.State)
	}
}
