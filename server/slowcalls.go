package server

import (
	"cmp"
	"context"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSlowCalls is how many calls are kept of each period of slowCallPeriod. The present
	// period and the one before are shown.
	maxSlowCalls   = 16
	slowCallPeriod = 5 * time.Minute
)

// SlowCall is a unary call that has ended, other than a wait.
type SlowCall struct {
	// Method is such as "instanced.v1.InstanceService/StartInstances".
	Method string
	// Principal is unverified.
	Principal, RequestID string
	Code                 string
	Ended                time.Time
	Took                 time.Duration
}

// slowCalls keeps the slowest calls of the last minutes. It is safe for concurrent use.
type slowCalls struct {
	// minTook is what a call must take to be kept, and periodEnd, in nanoseconds since 1970, is
	// when the period ends. They spare most calls the lock.
	minTook, periodEnd atomic.Int64

	mu               sync.Mutex
	current, earlier []SlowCall // guarded by mu; current is sorted, the slowest first
}

// note keeps a call if it is one of the slowest. Calls that last as long as their callers
// like, and calls of probes and tools, are left out.
func (s *slowCalls) note(ctx context.Context, c *call, took time.Duration, err error) {
	now := c.begun.Add(took)
	if c.longLived || c.request == nil || int64(took) <= s.minTook.Load() && now.UnixNano() < s.periodEnd.Load() {
		return
	}
	if service, _ := path.Split(c.method); !worthLogging(strings.Trim(service, "/")) {
		return
	}
	caller := callerOf(ctx)
	_, code, _, _ := logOutcome(err)
	s.add(SlowCall{
		Method: strings.TrimPrefix(c.method, "/"), Principal: caller.Principal, RequestID: caller.RequestID,
		Code: code, Ended: now, Took: took,
	})
}

func (s *slowCalls) add(c SlowCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotateLocked(c.Ended)
	at, _ := slices.BinarySearchFunc(s.current, c.Took, func(kept SlowCall, took time.Duration) int { return cmp.Compare(took, kept.Took) })
	s.current = slices.Insert(s.current, at, c)
	if len(s.current) > maxSlowCalls {
		s.current = s.current[:maxSlowCalls]
	}
	s.minTook.Store(math.MinInt64)
	if len(s.current) == maxSlowCalls {
		s.minTook.Store(int64(s.current[maxSlowCalls-1].Took))
	}
}

// rotateLocked begins a new period if the present one is over.
func (s *slowCalls) rotateLocked(now time.Time) {
	end := time.Unix(0, s.periodEnd.Load())
	if now.Before(end) {
		return
	}
	s.earlier = s.current
	if now.Sub(end) >= slowCallPeriod {
		s.earlier = nil
	}
	s.current = make([]SlowCall, 0, maxSlowCalls+1)
	s.periodEnd.Store(now.Add(slowCallPeriod).UnixNano())
}

// list returns the slowest calls, the slowest first.
func (s *slowCalls) list() []SlowCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotateLocked(time.Now())
	all := slices.Concat(s.current, s.earlier)
	slices.SortFunc(all, func(a, b SlowCall) int { return cmp.Compare(b.Took, a.Took) })
	return all[:min(len(all), maxSlowCalls)]
}

// SlowCalls returns the slowest unary calls of the last five to ten minutes, at most 16, the
// slowest first.
func (s *Server) SlowCalls() []SlowCall { return s.slow.list() }
