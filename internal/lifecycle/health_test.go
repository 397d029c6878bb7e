package lifecycle_test

import (
	"testing"
	"time"
)

// TestALostTermIsToldAtOnce has the owner lose etcd, and its lease with it: whoever waits for
// that is told by the channel, and that it is the owner again likewise. Meanwhile no loop counts
// as stuck.
func TestALostTermIsToldAtOnce(t *testing.T) {
	line := layCable(t, startEtcd(t))
	f := start(t, options{endpoints: []string{"http://" + line.address}, ttl: 2 * time.Second})
	wait := func(what string, changed <-chan struct{}) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("it was not told that %s", what)
		}
	}
	commanding, changed := f.Commanding()
	if !commanding {
		t.Fatal("it is not the owner")
	}
	if err := f.Writable(); err != nil {
		t.Errorf("at first: %v", err)
	}
	line.cut()
	wait("the term is over", changed)
	commanding, changed = f.Commanding()
	if commanding {
		t.Error("it commands the backend without a term")
	}
	if err := f.Alive(); err != nil {
		t.Errorf("while etcd is away: %v", err)
	}
	if _, _, ok := f.OwnTerm(); ok {
		t.Error("it has a term")
	}
	line.mend()
	wait("there is a term again", changed)
	if commanding, _ = f.Commanding(); !commanding {
		t.Error("it does not command the backend again")
	}
	if epoch, remaining, ok := f.OwnTerm(); !ok || epoch == 0 || remaining <= 0 || remaining > 2*time.Second {
		t.Errorf("the new term: %x, for %v, %v", epoch, remaining, ok)
	}
}
