package instance

// Shares divides places among holders, such as principals: each may hold as many as are
// left over. So one that wants all gets half of them, two get a third each, and whoever
// comes next still finds some. Everything that is bounded for all callers together is
// divided by this rule.
//
// It is not safe for concurrent use: the lock of what it belongs to guards it.
type Shares struct {
	max, taken int
	held       map[string]int
}

// NewShares returns shares of so many places, none of which is taken.
func NewShares(places int) Shares {
	return Shares{max: places, held: make(map[string]int)}
}

// Max returns how many places there are.
func (s *Shares) Max() int { return s.max }

// Taken returns how many places are taken.
func (s *Shares) Taken() int { return s.taken }

// Held returns how many places a holder has.
func (s *Shares) Held(holder string) int { return s.held[holder] }

// MayTake reports whether one who holds so many places may have n more, each after the
// other. It serves those who count what they hold themselves; see [Shares.Take].
func (s *Shares) MayTake(held, n int) bool { return held+2*(n-1) < s.max-s.taken }

// Take takes n places, or none. The holder "" stands for holders that cannot be told
// apart: they are bounded by the number of places alone.
func (s *Shares) Take(holder string, n int) bool {
	if !s.MayTake(s.held[holder], n) {
		return false
	}
	s.Force(holder, n)
	return true
}

// Force takes n places whether or not the holder may have them, for one that has just given
// others back.
func (s *Shares) Force(holder string, n int) {
	s.taken += n
	if holder != "" {
		s.held[holder] += n
	}
}

// Give gives n places back.
func (s *Shares) Give(holder string, n int) {
	s.taken -= n
	if holder == "" {
		return
	}
	if s.held[holder] -= n; s.held[holder] == 0 {
		delete(s.held, holder)
	}
}
