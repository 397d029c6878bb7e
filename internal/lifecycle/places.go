package lifecycle

import (
	"context"
	"slices"
	"sync"

	"github.com/instanced/instanced/internal/instance"
)

// Places bound what takes much of the processor or of memory and is over soon, so that
// callers wait for a place in place of being refused. They are divided as [instance.Shares]
// are: a holder that fills the line is passed by whoever has fewer places than are left over.
// Places are safe for concurrent use.
type Places struct {
	mu     sync.Mutex
	shares instance.Shares
	held   map[any]int
	// waiting are those who wait, in the order of arrival.
	waiting []*placeWaiter
}

// placeWaiter is one who waits; entered is closed when it has its place.
type placeWaiter struct {
	holders []any
	entered chan struct{}
}

// NewPlaces returns so many places, none of which is taken.
func NewPlaces(places int) *Places {
	return &Places{shares: instance.NewShares(places), held: make(map[any]int)}
}

// Enter waits for a place, and returns what gives it back, however often it is called. A
// caller may be several holders, such as a principal and a connection, of which each must
// have room. The error is that of ctx.
func (p *Places) Enter(ctx context.Context, holders ...any) (leave func(), err error) {
	w := &placeWaiter{holders: holders, entered: make(chan struct{})}
	p.mu.Lock()
	if !p.enterLocked(w) {
		p.waiting = append(p.waiting, w)
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
	for _, h := range w.holders {
		if !p.shares.MayTake(p.held[h], 1) {
			return false
		}
	}
	if !p.shares.Take("", 1) {
		return false
	}
	for _, h := range w.holders {
		p.held[h]++
	}
	close(w.entered)
	return true
}

// leave gives up a place, or the wait for one.
func (p *Places) leave(w *placeWaiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-w.entered:
	default:
		p.waiting = slices.DeleteFunc(p.waiting, func(other *placeWaiter) bool { return other == w })
		return
	}
	p.shares.Give("", 1)
	for _, h := range w.holders {
		if p.held[h]--; p.held[h] == 0 {
			delete(p.held, h)
		}
	}
	for i := 0; i < len(p.waiting) && p.shares.Taken() < p.shares.Max(); {
		if p.enterLocked(p.waiting[i]) {
			p.waiting = slices.Delete(p.waiting, i, i+1)
		} else {
			i++
		}
	}
}
