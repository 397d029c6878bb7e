package instance

import (
	"context"
	"slices"
	"sync"
)

// Places limit the concurrency of work that is expensive but short, so that callers wait
// for a place instead of being rejected. They are divided like [Shares], and waiting
// callers take turns, so that one with many requests does not delay the others. Places are
// safe for concurrent use.
type Places struct {
	mu     sync.Mutex
	shares Shares
	held   map[any]int
	// lines holds the waiters of each caller in the order of arrival; none is empty. turns
	// holds these callers in the order of their turns.
	lines map[caller][]*placeWaiter
	turns []caller
}

// caller is the holders of a place.
type caller [2]any

// placeWaiter is a waiting request; entered is closed when it has its place.
type placeWaiter struct {
	caller  caller
	entered chan struct{}
}

// NewPlaces returns a number of free places.
func NewPlaces(places int) *Places {
	return &Places{shares: NewShares(places), held: make(map[any]int), lines: make(map[caller][]*placeWaiter)}
}

// Enter waits for a place and returns a function that releases it, which may be called more
// than once. A caller has at most two holders, such as a principal and a connection, and
// each of them must have room. The error is that of ctx.
func (p *Places) Enter(ctx context.Context, holders ...any) (leave func(), err error) {
	w := &placeWaiter{entered: make(chan struct{})}
	copy(w.caller[:], holders)
	p.mu.Lock()
	line := p.lines[w.caller]
	if len(line) > 0 || !p.enterLocked(w) {
		if len(line) == 0 {
			p.turns = append(p.turns, w.caller)
		}
		p.lines[w.caller] = append(line, w)
	}
	p.mu.Unlock()
	leave = sync.OnceFunc(func() { p.leave(w) })
	select {
	case <-w.entered:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

func (p *Places) enterLocked(w *placeWaiter) bool {
	for _, h := range w.caller {
		if h != nil && !p.shares.MayTake(p.held[h], 1) {
			return false
		}
	}
	if !p.shares.Take("", 1) {
		return false
	}
	for _, h := range w.caller {
		if h != nil {
			p.held[h]++
		}
	}
	close(w.entered)
	return true
}

// leave releases a place, or stops waiting for one.
func (p *Places) leave(w *placeWaiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-w.entered:
	default:
		line := slices.DeleteFunc(p.lines[w.caller], func(other *placeWaiter) bool { return other == w })
		if p.lines[w.caller] = line; len(line) == 0 {
			delete(p.lines, w.caller)
			p.turns = slices.DeleteFunc(p.turns, func(c caller) bool { return c == w.caller })
		}
		return
	}
	p.shares.Give("", 1)
	for _, h := range w.caller {
		if h == nil {
			continue
		}
		if p.held[h]--; p.held[h] == 0 {
			delete(p.held, h)
		}
	}
	p.admitLocked()
}

// admitLocked gives free places to waiting callers in turn.
func (p *Places) admitLocked() {
	for i := 0; i < len(p.turns) && p.shares.Taken() < p.shares.Max(); {
		next := p.turns[i]
		line := p.lines[next]
		if !p.enterLocked(line[0]) {
			i++
			continue
		}
		p.turns = slices.Delete(p.turns, i, i+1)
		if len(line) == 1 {
			delete(p.lines, next)
			continue
		}
		p.lines[next] = line[1:]
		p.turns = append(p.turns, next)
	}
}
