package soak_test

import (
	"testing"
	"time"
)

func TestAProcessThatIsKilledAgainAndAgainKeepsItsPromises(t *testing.T) {
	short(t, killed)
}

// killed kills one process on its data directory, at any time: while it opens the
// journal, becomes its owner, restores the simulator, or answers callers.
func killed(r round) {
	p := newProcess(r.T, append(r.flags(), "--data-dir", r.TempDir())...)
	p.start()
	p.ready()
	s := r.begin(p.address)
	s.served(20)
	for n := range r.times(6, 50) {
		// Every other time it gets as far as to answer.
		if n%2 == 0 {
			p.ready()
			s.served(1 + r.random.IntN(20))
		}
		time.Sleep(time.Duration(r.random.Int64N(int64(300 * time.Millisecond))))
		p.kill()
		r.summary.count("kills", 1)
		p.start()
	}
	began := time.Now()
	p.ready()
	s.served(20)
	r.summary.took("from a start to callers being served", time.Since(began))
	s.finish()
}
