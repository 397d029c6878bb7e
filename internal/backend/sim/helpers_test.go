package sim_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// open returns a restored simulator that is closed when the test ends.
func open(t testing.TB, config sim.Config) *sim.Backend {
	t.Helper()
	b := sim.New(config)
	t.Cleanup(b.Close)
	if err := b.Restore(nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// bubble runs subtests in virtual time.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// create adds instances and returns their ids.
func create(t testing.TB, b *sim.Backend, specs ...sim.Spec) []instance.ID {
	t.Helper()
	created, err := b.Create(t.Context(), specs)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]instance.ID, len(created))
	for i, inst := range created {
		ids[i] = inst.ID
	}
	return ids
}

// get describes one instance; nil if there is none.
func get(t testing.TB, b *sim.Backend, id instance.ID) *instance.Instance {
	t.Helper()
	page, err := b.Describe(t.Context(), instance.DescribeQuery{IDs: []instance.ID{id}})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Instances) == 0 {
		return nil
	}
	return page.Instances[0]
}

// inState fails the test if an instance is not in a state.
func inState(t testing.TB, b *sim.Backend, id instance.ID, want instance.State) *instance.Instance {
	t.Helper()
	inst := get(t, b, id)
	if inst == nil {
		t.Fatalf("%s is gone, want %s", id, want)
	}
	if inst.State != want {
		t.Fatalf("%s is %s, want %s", id, inst.State, want)
	}
	return inst
}

// do executes a verb on ids.
func do(t testing.TB, b *sim.Backend, verb instance.Verb, ids ...instance.ID) (instance.Result, error) {
	t.Helper()
	return b.Execute(t.Context(), instance.Command{Verb: verb, IDs: ids})
}

// must executes a verb that is to succeed.
func must(t testing.TB, b *sim.Backend, verb instance.Verb, ids ...instance.ID) []instance.StateChange {
	t.Helper()
	result, err := do(t, b, verb, ids...)
	if err != nil {
		t.Fatal(err)
	}
	return result.Changes
}

// asError returns the error as one of the vocabulary.
func asError(t testing.TB, err error) *instance.Error {
	t.Helper()
	e, ok := errors.AsType[*instance.Error](err)
	if !ok {
		t.Fatalf("error is %v, want an instance.Error", err)
	}
	return e
}

// refuses fails the test unless err has the kind, the code and the message.
func refuses(t testing.TB, err error, kind instance.Kind, code, message string) {
	t.Helper()
	e := asError(t, err)
	if e.Kind != kind || e.Code != code || e.Message != message {
		t.Fatalf("error is kind %d, code %q, message\n%q, want kind %d, code %q, message\n%q", e.Kind, e.Code, e.Message, kind, code, message)
	}
}

// listen collects notices, acknowledged, until the returned function is called.
func listen(t testing.TB, b *sim.Backend) (heard func() []instance.Notice) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var notices []instance.Notice
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n, err := range b.Notices(ctx) {
			if err != nil {
				t.Error(err)
			}
			n.Ack()
			notices = append(notices, n)
		}
	}()
	t.Cleanup(cancel)
	return func() []instance.Notice {
		synctest.Wait()
		cancel()
		<-done
		return notices
	}
}

// statesOf returns the states that notices tell of one instance.
func statesOf(notices []instance.Notice, id instance.ID) []instance.State {
	var states []instance.State
	for _, n := range notices {
		if n.ID == id {
			states = append(states, n.State)
		}
	}
	return states
}

func equal[T comparable](t testing.TB, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// settled is longer than any transition at speed 1.
const settled = 3 * time.Minute

// within fails the test unless d is within the bounds.
func within(t testing.TB, what string, d, minimum, maximum time.Duration) {
	t.Helper()
	if d < minimum || d > maximum {
		t.Fatalf("%s took %v, want %v to %v", what, d, minimum, maximum)
	}
}

func canceled(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
