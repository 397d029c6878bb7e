package instance

// Shares divides places among holders, such as principals: each may hold as many as are
// free. So a single holder gets at most half of them, two get a third each, and the next
// one still finds some. Everything with a limit for all callers together is divided by this
// rule.
//
// It is not safe for concurrent use: the lock of what it belongs to guards it.
type Shares struct {
	max, taken int
	held       map[string]int
}

// NewShares returns shares of a number of free places.
func NewShares(places int) Shares {
	return Shares{max: places, held: make(map[string]int)}
}

// Max returns the number of places.
func (s *Shares) Max() int { return s.max }

// Taken returns the number of places that are taken.
func (s *Shares) Taken() int { return s.taken }

// Held returns the number of places of a holder.
func (s *Shares) Held(holder string) int { return s.held[holder] }

// MayTake reports whether a holder of a number of places may take n more, one after
// another. It is for holders that count their places themselves; see [Shares.Take].
func (s *Shares) MayTake(held, n int) bool { return held+2*(n-1) < s.max-s.taken }

// Take takes n places, or none. The holder "" stands for holders that cannot be told apart;
// only the number of places limits them.
func (s *Shares) Take(holder string, n int) bool {
	if !s.MayTake(s.held[holder], n) {
		return false
	}
	s.Force(holder, n)
	return true
}

// Force takes n places even if the holder may not have them; it is for a holder that has
// just released others.
func (s *Shares) Force(holder string, n int) {
	s.taken += n
	if holder != "" {
		s.held[holder] += n
	}
}

// Give releases n places.
func (s *Shares) Give(holder string, n int) {
	s.taken -= n
	if holder == "" {
		return
	}
	if s.held[holder] -= n; s.held[holder] == 0 {
		delete(s.held, holder)
	}
}
