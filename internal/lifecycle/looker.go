package lifecycle

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
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
	// waited has those of wanted that the service itself waits for, background the others
	// that it wants.
	waited, background lookQueue
	// examined counts the wishes that were looked at to find those that are due.
	examined int
	// lookUps are the places of ids that callers wait to have looked up, askers those who
	// do, and turns in which order.
	lookUps instance.Shares
	askers  map[string]*asker
	turns   []*asker
}

// maxLookUps is how many ids may wait to be looked up for all callers together.
const maxLookUps = 10_000

// asker is a principal and the ids that it waits to have looked up. Those that are no
// longer wanted have been looked up for somebody else.
type asker struct {
	principal string
	ids       []instance.ID
}

// waiter is told when an instance was looked at. It has room for it.
type waiter struct {
	told chan<- error
	// principal is who has the place of a look-up.
	principal string
	lookUp    bool
}

// look is the wish to see one instance.
type look struct {
	id        instance.ID
	trust     trust
	notBefore time.Time
	// place is where it is in its queue, -1 when it is in none.
	place int
	// repeat is whether to try again when the backend does not answer.
	repeat bool
	// acks are called when what was seen is recorded; waiters are told then, or when
	// the backend did not answer. They have room for it.
	acks    []func()
	waiters []waiter
	// service is whether the service itself wants it, rather than callers who look it up.
	service bool
}

func newLooker(s *Service) *looker {
	return &looker{
		s:      s,
		wanted: make(map[instance.ID]*look),
		wake:   make(chan struct{}, 1),

		lookUps: instance.NewShares(maxLookUps),
		askers:  make(map[string]*asker),
	}
}

// request asks for instances to be looked at soon. Where nobody waits, nothing can fail.
func (l *looker) request(ids ...instance.ID) {
	_ = l.want(ids, look{repeat: true})
}

// requestFor asks for the instance of a notice, which is acknowledged afterwards.
func (l *looker) requestFor(n instance.Notice) {
	_ = l.want([]instance.ID{n.ID}, look{repeat: true, acks: []func(){n.Ack}})
}

// look looks at instances and returns when what was seen is recorded.
func (l *looker) look(ctx context.Context, ids []instance.ID, how trust) error {
	return l.await(ctx, ids, look{trust: how}, waiter{})
}

// lookUp looks at instances that are not known, except for those of which the backend
// said a moment ago that they do not exist. Principals take turns, and may have as many
// look-ups waiting as are left over of maxLookUps.
func (l *looker) lookUp(ctx context.Context, principal string, ids []instance.ID) error {
	return l.await(ctx, ids, look{}, waiter{principal: principal, lookUp: true})
}

func (l *looker) await(ctx context.Context, ids []instance.ID, wish look, w waiter) error {
	told := make(chan error, len(ids))
	w.told = told
	wish.waiters = []waiter{w}
	if err := l.want(ids, wish); err != nil {
		return err
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

// want adds wishes to those that there are. When nobody looks it fails for those who
// wait; other wishes are kept then.
func (l *looker) want(ids []instance.ID, wish look) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open && len(wish.waiters) > 0 {
		return errEnding()
	}
	if len(wish.waiters) == 0 || !wish.waiters[0].lookUp {
		wish.service = true
		for _, id := range ids {
			l.add(id, wish)
		}
		l.signal()
		return nil
	}
	w := wish.waiters[0]
	unknown := make([]instance.ID, 0, len(ids))
	for _, id := range ids {
		if l.s.absent.has(id) {
			w.told <- nil
		} else {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	if !l.lookUps.Take(w.principal, len(unknown)) {
		return errTooManyLookUps()
	}
	for _, id := range unknown {
		l.add(id, wish)
	}
	l.ask(w.principal, unknown)
	l.signal()
	return nil
}

// ask puts ids behind those that a principal waits for. The caller holds the lock.
func (l *looker) ask(principal string, ids []instance.ID) {
	a := l.askers[principal]
	if a == nil {
		a = &asker{principal: principal}
		l.askers[principal] = a
		l.turns = append(l.turns, a)
	}
	a.ids = append(a.ids, ids...)
}

// nextLookUp returns an id that a caller waits for, of each principal in turn; false when
// there is none. The caller holds the lock.
func (l *looker) nextLookUp() (instance.ID, bool) {
	for len(l.turns) > 0 {
		a := l.turns[0]
		l.turns = l.turns[1:]
		id := a.ids[0]
		if a.ids = a.ids[1:]; len(a.ids) > 0 {
			l.turns = append(l.turns, a)
		} else {
			delete(l.askers, a.principal)
		}
		if w := l.wanted[id]; w != nil && !w.service {
			return id, true
		}
	}
	return "", false
}

// notify tells a waiter, and gives the place of its look-up back. The caller holds the lock.
func (l *looker) notify(w waiter, err error) {
	w.told <- err
	if w.lookUp {
		l.lookUps.Give(w.principal, 1)
	}
}

func errTooManyLookUps() error {
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyLookUps,
		Message:    fmt.Sprintf("too many ids that are not known wait to be looked up at the backend: of %d places a caller may have as many as are left over; nothing was changed", maxLookUps),
		RetryAfter: time.Second,
	}
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
			l.notify(waiter, errEnding())
		}
		l.leaveQueue(w)
		w.waiters = nil
		l.enterQueue(w)
	}
}

// add joins a wish with one for the same instance. The caller holds the lock.
func (l *looker) add(id instance.ID, wish look) {
	w := l.wanted[id]
	if w == nil {
		w = &look{id: id, notBefore: wish.notBefore, place: -1}
		l.wanted[id] = w
	}
	l.leaveQueue(w)
	w.trust = w.trust || wish.trust
	w.repeat = w.repeat || wish.repeat
	w.service = w.service || wish.service
	w.acks = append(w.acks, wish.acks...)
	w.waiters = append(w.waiters, wish.waiters...)
	if wish.notBefore.Before(w.notBefore) {
		w.notBefore = wish.notBefore
	}
	l.enterQueue(w)
}

// queueOf returns the queue of a wish of the service.
func (l *looker) queueOf(w *look) *lookQueue {
	if len(w.waiters) > 0 {
		return &l.waited
	}
	return &l.background
}

// enterQueue queues a wish of the service; what callers look up has its turn.
func (l *looker) enterQueue(w *look) {
	if w.service {
		heap.Push(l.queueOf(w), w)
	}
}

func (l *looker) leaveQueue(w *look) {
	if w.place >= 0 {
		heap.Remove(l.queueOf(w), w.place)
	}
}

// retry looks at once at instances whose description was deferred.
func (l *looker) retry(ids []instance.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if w := l.wanted[id]; w != nil && w.place >= 0 {
			w.notBefore = time.Time{}
			heap.Fix(l.queueOf(w), w.place)
		}
	}
	l.signal()
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
			l.notify(waiter, err)
		}
		if w.repeat {
			l.add(id, look{trust: w.trust, repeat: true, service: true, acks: w.acks, notBefore: time.Now().Add(retryLook)})
		}
	}
}

// due takes the wishes that are due, and tells when the next will be. Half of a look is for
// what callers look up, if there is as much, the rest for the service itself, and what is
// left for either.
func (l *looker) due() (due map[instance.ID]*look, next time.Time) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	due = make(map[instance.ID]*look)
	take := func(w *look) {
		l.examined++
		l.leaveQueue(w)
		if l.s.tracker.deferDescribe(w.id) {
			// The command's end has it retried, unless it takes too long.
			w.service, w.notBefore = true, now.Add(maxHold)
			l.enterQueue(w)
			return
		}
		due[w.id] = w
		delete(l.wanted, w.id)
	}
	lookUps := func(limit int) {
		for len(due) < limit {
			id, ok := l.nextLookUp()
			if !ok {
				return
			}
			take(l.wanted[id])
		}
	}
	lookUps(mostLooked / 2)
	for _, queue := range []*lookQueue{&l.waited, &l.background} {
		for len(*queue) > 0 && len(due) < mostLooked && !(*queue)[0].notBefore.After(now) {
			take((*queue)[0])
		}
	}
	lookUps(mostLooked)
	for _, queue := range []lookQueue{l.waited, l.background} {
		if len(queue) > 0 {
			next = earlier(next, queue[0].notBefore)
		}
	}
	if len(due) == mostLooked {
		next = now
	}
	return due, next
}

// lookQueue is a heap of wishes, the first due one on top.
type lookQueue []*look

func (q lookQueue) Len() int           { return len(q) }
func (q lookQueue) Less(i, j int) bool { return q[i].notBefore.Before(q[j].notBefore) }

func (q lookQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for package heap.
func (q *lookQueue) Push(x any) {
	w := x.(*look)
	w.place = len(*q)
	*q = append(*q, w)
}

// Pop is for package heap.
func (q *lookQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	w.place = -1
	return w
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
		l.fulfil(w)
	}
	return nil
}

// again renews a wish that was not fulfilled.
func (l *looker) again(id instance.ID, w *look, delay time.Duration) {
	again := *w
	again.service = true // it has had its turn
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
			l.fulfil(w)
			delete(looks, id)
		}
	}
}

// fulfil tells all who wait for a look that it has taken place.
func (l *looker) fulfil(w *look) {
	for _, ack := range w.acks {
		ack()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, waiter := range w.waiters {
		l.notify(waiter, nil)
	}
}

// errEnding is for those who wait for a look when this process stops looking.
func errEnding() error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonNotOwner,
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
		Reason:     instance.ReasonBackendUnavailable,
		Message:    fmt.Sprintf("the backend did not describe the instances within %v; nothing was changed", describeTimeout),
		RetryAfter: retryLook,
		Cause:      err,
	}
}
