package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// mostLooked is how many instances one look asks the backend for.
const mostLooked = 200

const (
	// retryLook is how long it takes until a look that came to nothing is repeated.
	retryLook = time.Second
	// retryOvertaken is the same for one that was only too early.
	retryOvertaken = 20 * time.Millisecond
	// describeTimeout bounds how long the backend may take to describe instances.
	describeTimeout = 30 * time.Second
)

// trust says how far a description is believed.
type trust bool

const (
	// cautious does not believe, for a while, one that shows what was before a recent
	// change, or that leaves out what was there: EC2 is eventually consistent.
	cautious trust = false
	// certain believes it: the backend was just set to what it describes.
	certain trust = true
)

// looker describes instances at the backend on behalf of everybody, one call at a
// time: what is asked for meanwhile goes into the next call.
type looker struct {
	s *Service

	mu sync.Mutex
	// open is whether anybody looks.
	open   bool
	wanted map[instance.ID]*look
	wake   chan struct{}
}

// look is the wish to see one instance.
type look struct {
	trust     trust
	notBefore time.Time
	// unlessAbsent leaves out what is known not to exist.
	unlessAbsent bool
	// repeat is whether to try again when the backend does not answer.
	repeat bool
	// acks are called when what was seen is recorded; waiters are told then, or when
	// the backend did not answer. They have room for it.
	acks    []func()
	waiters []chan error
}

func newLooker(s *Service) *looker {
	return &looker{
		s:      s,
		wanted: make(map[instance.ID]*look),
		wake:   make(chan struct{}, 1),
	}
}

// request asks for instances to be looked at soon.
func (l *looker) request(ids ...instance.ID) {
	l.want(ids, look{repeat: true})
}

// requestFor asks for the instance of a notice, which is acknowledged afterwards.
func (l *looker) requestFor(n instance.Notice) {
	l.want([]instance.ID{n.ID}, look{repeat: true, acks: []func(){n.Ack}})
}

// look looks at instances and returns when what was seen is recorded.
func (l *looker) look(ctx context.Context, ids []instance.ID, how trust) error {
	return l.await(ctx, ids, look{trust: how})
}

// lookUp looks at instances that are not known, except for those of which the backend
// said a moment ago that they do not exist.
func (l *looker) lookUp(ctx context.Context, ids []instance.ID) error {
	return l.await(ctx, ids, look{unlessAbsent: true})
}

func (l *looker) await(ctx context.Context, ids []instance.ID, wish look) error {
	told := make(chan error, len(ids))
	wish.waiters = []chan error{told}
	if !l.want(ids, wish) {
		return errEnding()
	}
	for range ids {
		select {
		case err := <-told:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// want adds wishes to those that there are. It is false, and nobody is told, when nobody
// looks; wishes for which nobody waits are kept then.
func (l *looker) want(ids []instance.ID, wish look) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open && len(wish.waiters) > 0 {
		return false
	}
	for _, id := range ids {
		if wish.unlessAbsent && l.s.absent.has(id) {
			for _, waiter := range wish.waiters {
				waiter <- nil
			}
			continue
		}
		l.add(id, wish)
	}
	l.signal()
	return true
}

// begin lets wishes be waited for, until run ends.
func (l *looker) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = true
}

// end tells all who wait that nobody looks any more.
func (l *looker) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
	for _, w := range l.wanted {
		for _, waiter := range w.waiters {
			waiter <- errEnding()
		}
		w.waiters = nil
	}
}

// add joins a wish with one for the same instance. The caller holds the lock.
func (l *looker) add(id instance.ID, wish look) {
	w := l.wanted[id]
	if w == nil {
		w = &look{notBefore: wish.notBefore}
		l.wanted[id] = w
	}
	w.trust = w.trust || wish.trust
	w.repeat = w.repeat || wish.repeat
	w.acks = append(w.acks, wish.acks...)
	w.waiters = append(w.waiters, wish.waiters...)
	if wish.notBefore.Before(w.notBefore) {
		w.notBefore = wish.notBefore
	}
}

func (l *looker) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run looks until ctx is done. Wishes that are left then are kept for the next term.
func (l *looker) run(ctx context.Context) {
	defer l.end()
	failing := false
	for {
		due, next := l.due()
		if len(due) == 0 {
			var timer <-chan time.Time
			if !next.IsZero() {
				timer = time.After(time.Until(next))
			}
			select {
			case <-l.wake:
			case <-timer:
			case <-ctx.Done():
				return
			}
			continue
		}
		if err := l.describe(ctx, due); err != nil {
			if ctx.Err() != nil {
				l.failed(due, errEnding())
				return
			}
			l.failed(due, unanswered(err))
			if !failing {
				l.s.log.Warn("what the backend says of instances could not be learnt or recorded; trying again until it is", "count", len(due), "error", err)
			}
			failing = true
		} else if failing {
			failing = false
			l.s.log.Info("what the backend says of instances is recorded again")
		}
	}
}

// earlier returns the earlier of two times, of which the first may be none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// failed tells those who wait that the backend could not be asked, and renews the
// wishes of the others.
func (l *looker) failed(looks map[instance.ID]*look, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, w := range looks {
		for _, waiter := range w.waiters {
			waiter <- err
		}
		if w.repeat {
			l.add(id, look{trust: w.trust, repeat: true, acks: w.acks, notBefore: time.Now().Add(retryLook)})
		}
	}
}

// due takes the wishes that are due, and tells when the next will be.
func (l *looker) due() (due map[instance.ID]*look, next time.Time) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	due = make(map[instance.ID]*look)
	for id, w := range l.wanted {
		switch {
		case len(due) == mostLooked:
			return due, now
		case w.notBefore.After(now):
			next = earlier(next, w.notBefore)
		case l.s.tracker.deferDescribe(id):
			// The command's end wakes the looker, unless it takes too long.
			next = earlier(next, now.Add(maxHold))
		default:
			due[id] = w
			delete(l.wanted, id)
		}
	}
	return due, next
}

// describe asks the backend for instances and records what it says.
func (l *looker) describe(ctx context.Context, looks map[instance.ID]*look) error {
	ids := make([]instance.ID, 0, len(looks))
	for id := range looks {
		ids = append(ids, id)
	}
	fence := l.s.fence()
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	found := make(map[instance.ID]*instance.Instance, len(ids))
	unreadable := make(map[instance.ID]bool)
	query := instance.DescribeQuery{IDs: ids}
	for {
		page, err := l.s.backend.Describe(ctx, query)
		if err != nil {
			return err
		}
		l.s.noteUnreadable(page)
		for _, i := range page.Instances {
			found[i.ID] = i
		}
		for id := range page.Unreadable {
			unreadable[id] = true
		}
		if page.NextPageToken == "" {
			break
		}
		query.PageToken = page.NextPageToken
	}
	l.tell(looks, unreadable)
	ids = slices.DeleteFunc(ids, func(id instance.ID) bool { return unreadable[id] })
	descriptions := make([]description, len(ids))
	for i, id := range ids {
		descriptions[i] = description{id: id, image: found[id], trust: looks[id].trust}
	}
	verdicts, err := l.s.recordDescriptions(ctx, fence, descriptions)
	if err != nil {
		return err
	}
	for i, id := range ids {
		w := looks[id]
		if delay := map[verdict]time.Duration{overtaken: retryOvertaken, stale: retryLook}[verdicts[i]]; delay > 0 {
			l.again(id, w, delay)
			continue
		}
		l.s.tracker.resolve(id, fence.at)
		if found[id] == nil {
			l.s.absent.add(id)
			l.s.unreadable.remove(id)
		}
		w.tell()
	}
	return nil
}

// again renews a wish that was not fulfilled.
func (l *looker) again(id instance.ID, w *look, delay time.Duration) {
	again := *w
	again.notBefore = time.Now().Add(delay)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(id, again)
}

// tell ends the looks at instances that cannot be understood: there is nothing to record,
// and to look again soon would show the same.
func (l *looker) tell(looks map[instance.ID]*look, unreadable map[instance.ID]bool) {
	for id := range unreadable {
		if w := looks[id]; w != nil {
			l.s.absent.add(id) // as far as looking it up again soon is concerned
			w.tell()
			delete(looks, id)
		}
	}
}

// tell tells all who wait for a look that it has taken place.
func (w *look) tell() {
	for _, ack := range w.acks {
		ack()
	}
	for _, waiter := range w.waiters {
		waiter <- nil
	}
}

// errEnding is for those who wait for a look when this process stops looking.
func errEnding() error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     journal.ReasonNotOwner,
		Message:    "this process no longer commands the backend; nothing was changed",
		RetryAfter: time.Second,
	}
}

// unanswered makes an error of the service of one that is only that of a deadline of its
// own.
func unanswered(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     "BACKEND_UNAVAILABLE",
		Message:    fmt.Sprintf("the backend did not describe the instances within %v; nothing was changed", describeTimeout),
		RetryAfter: retryLook,
		Cause:      err,
	}
}
