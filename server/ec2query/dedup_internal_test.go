package ec2query

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// remembering counts the commands that were run.
type remembering struct {
	*dedup
	runs int
}

// command makes an attempt of a command, whose answer has so many lines.
func (r *remembering) command(t *testing.T, principal string, key byte, lines int) {
	t.Helper()
	if _, err := r.once(context.Background(), principal, invocation{key}, func() ([]instance.StateChange, error) {
		r.runs++
		return make([]instance.StateChange, lines-1), nil
	}); err != nil {
		t.Fatal(err)
	}
}

// wantRemembered checks whether another attempt would get an answer.
func (r *remembering) wantRemembered(t *testing.T, key byte, want bool) {
	t.Helper()
	if _, got := r.attempts[invocation{key}]; got != want {
		t.Errorf("the answer of %d is remembered: %t, want %t", key, got, want)
	}
}

func TestAnAnswerIsRememberedForAsLongAsSDKsRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := remembering{dedup: newDedup(maxRemembered)}
		r.command(t, "alice", 1, 2)
		time.Sleep(rememberedFor)
		r.command(t, "alice", 1, 2)
		if r.runs != 1 {
			t.Errorf("a later attempt made %d runs of it", r.runs)
		}
		time.Sleep(time.Second)
		r.command(t, "bob", 2, 2) // whoever calls
		r.wantRemembered(t, 1, false)
	})
}

func TestAPrincipalsAnswersGiveWayToItsOwn(t *testing.T) {
	r := remembering{dedup: newDedup(100)}
	r.command(t, "alice", 200, 10)
	for key := range byte(100) {
		r.command(t, "greedy", key, 5)
	}
	r.wantRemembered(t, 200, true)
	// Of the 90 lines that alice leaves free the greedy one may have half.
	for key := range byte(100) {
		r.wantRemembered(t, key, key >= 100-9)
	}
	r.command(t, "bob", 201, 20)
	r.wantRemembered(t, 201, true)
	r.wantRemembered(t, 200, true)
	r.command(t, "greedy", 202, 101)
	r.wantRemembered(t, 202, false)
	if n := r.lines.Held("greedy"); n != 0 {
		t.Errorf("%d lines of the greedy one are remembered after an answer for which there is no room", n)
	}
}
