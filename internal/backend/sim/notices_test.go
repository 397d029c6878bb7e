package sim_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// take returns the next n notices, without an acknowledgement.
func take(t testing.TB, b *sim.Backend, n int) []instance.Notice {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var notices []instance.Notice
	for notice, err := range b.Notices(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		notices = append(notices, notice)
		if len(notices) == n {
			return notices
		}
	}
	t.Fatalf("%d notices came, want %d", len(notices), n)
	return nil
}

var started = []instance.State{instance.StateStopped, instance.StatePending, instance.StateRunning}

func TestNotices(t *testing.T) {
	fleet := []sim.Spec{{ID: id}}
	bubble(t, "tell of every change, with the instance in full", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: fleet})
		heard := listen(t, b)
		at := must(t, b, instance.VerbStart, id)[0].At
		time.Sleep(settled)
		disable := true
		if err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, DisableAPIStop: &disable}}); err != nil {
			t.Fatal(err)
		}
		notices := heard()
		equal(t, "states", statesOf(notices, id), append(started, instance.StateRunning))
		if !notices[1].OccurredAt.Equal(at) {
			t.Errorf("the start occurred at %v, and %v is said", at, notices[1].OccurredAt)
		}
		for _, n := range notices {
			if n.Source != instance.SourceSimulator || n.Instance == nil || n.Instance.State != n.State || n.Instance.ID != n.ID {
				t.Errorf("notice is %+v", n)
			}
		}
	})
	bubble(t, "that were not acknowledged come again", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet})
		must(t, b, instance.VerbStart, id)
		first := take(t, b, 3)
		first[1].Ack()
		first[1].Ack()
		again := take(t, b, 2)
		equal(t, "states", statesOf(again, id), []instance.State{instance.StateStopped, instance.StateRunning})
		first[0].Ack()
		again[1].Ack()
		if left := listen(t, b)(); len(left) != 0 {
			t.Fatalf("left are %+v", left)
		}
	})
	bubble(t, "come once, where delivery is best effort", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet, Options: sim.Options{BestEffortNotices: true}})
		take(t, b, 1)[0].Ack()
		if left := listen(t, b)(); len(left) != 0 {
			t.Fatalf("left are %+v", left)
		}
	})
	bubble(t, "have one consumer: the second takes over", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet})
		ended := make(chan int)
		go func() {
			n := 0
			for _, err := range b.Notices(t.Context()) {
				if err != nil {
					t.Error(err)
				}
				n++
			}
			ended <- n
		}()
		synctest.Wait()
		take(t, b, 1)
		if n := <-ended; n != 1 {
			t.Fatalf("the first had %d notices, want 1", n)
		}
	})
	bubble(t, "are bounded: the oldest are dropped", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet})
		for range 10000 {
			must(t, b, instance.VerbStart, id)
			must(t, b, instance.VerbStop, id)
		}
		last := get(t, b, id)
		notices := listen(t, b)()
		if len(notices) != 16384 || notices[len(notices)-1].Instance != last {
			t.Fatalf("%d notices are left", len(notices))
		}
	})
	bubble(t, "end with the context", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet})
		for n, err := range b.Notices(canceled(t)) {
			t.Fatalf("%+v, %v came", n, err)
		}
	})
}

func TestNoticesWithFaults(t *testing.T) {
	tests := []struct {
		name  string
		fault sim.Fault
		want  []instance.State
	}{
		{"lost", sim.Fault{Kind: sim.NoticeLost, Remaining: 2}, started[2:]},
		{"doubled", sim.Fault{Kind: sim.NoticeDoubled, Remaining: 1}, []instance.State{instance.StateStopped, instance.StateStopped, instance.StatePending, instance.StateRunning}},
		{"late, and after others that are in time", sim.Fault{Kind: sim.NoticeLate, Delay: time.Hour, Remaining: 1}, []instance.State{instance.StatePending, instance.StateRunning, instance.StateStopped}},
		{"reordered", sim.Fault{Kind: sim.NoticeReordered, Remaining: 1}, []instance.State{instance.StatePending, instance.StateStopped, instance.StateRunning}},
		{"of other instances", sim.Fault{Kind: sim.NoticeLost, Match: sim.Match{IDs: []instance.ID{other}}}, started},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1, Faults: []sim.Fault{test.fault}, Fleet: []sim.Spec{{ID: id}}})
			heard := listen(t, b)
			must(t, b, instance.VerbStart, id)
			time.Sleep(2 * time.Hour)
			equal(t, "states", statesOf(heard(), id), test.want)
		})
	}
	bubble(t, "a late one comes when it is due", func(t *testing.T) {
		b := open(t, sim.Config{Faults: []sim.Fault{{Kind: sim.NoticeLate, Delay: time.Minute}}, Fleet: []sim.Spec{{ID: id}}})
		begin := time.Now()
		take(t, b, 1)
		if d := time.Since(begin); d != time.Minute {
			t.Fatalf("it came after %v", d)
		}
	})
	bubble(t, "a reordered one that nothing follows comes after a minute", func(t *testing.T) {
		b := open(t, sim.Config{Faults: []sim.Fault{{Kind: sim.NoticeReordered}}, Fleet: []sim.Spec{{ID: id}}})
		begin := time.Now()
		take(t, b, 1)
		if d := time.Since(begin); d != time.Minute {
			t.Fatalf("it came after %v", d)
		}
	})
}
