package ec2

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Execute carries a command out, in one call to EC2 with others of its kind where that
// makes no difference to anybody; see the contract at the consumer. A caller that leaves
// takes only itself away: what has gone out is carried out.
func (b *Backend) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	if err := ctx.Err(); err != nil {
		return instance.Result{}, err
	}
	if len(cmd.IDs) == 0 || b.desks[cmd.Verb] == nil {
		return instance.Result{}, &instance.Error{
			Kind: instance.KindInvalid, Code: "InvalidParameterCombination", Message: "No instances specified",
		}
	}
	if away := b.client.breaker.allow(); away != nil {
		return instance.Result{}, away
	}
	strangers, err := b.unmanaged(ctx, cmd.IDs)
	if err != nil {
		return instance.Result{}, err
	}
	if len(strangers) == 0 {
		return b.execute(ctx, cmd)
	}
	if !cmd.PerInstance || cmd.DryRun {
		return instance.Result{}, errNotFound(strangers...)
	}
	var result instance.Result
	order := make(map[instance.ID]int, len(cmd.IDs))
	for i, id := range cmd.IDs {
		order[id] = i
	}
	strange := setOf(strangers)
	cmd.IDs = slices.DeleteFunc(slices.Clone(cmd.IDs), func(id instance.ID) bool { return strange[id] })
	if len(cmd.IDs) > 0 {
		if result, err = b.execute(ctx, cmd); err != nil {
			return result, err
		}
	}
	for _, id := range strangers {
		result.Failures = append(result.Failures, instance.Failure{ID: id, Err: errNotFound(id)})
	}
	slices.SortFunc(result.Failures, func(x, y instance.Failure) int { return order[x.ID] - order[y.ID] })
	return result, nil
}

func errNotFound(ids ...instance.ID) *instance.Error {
	return &instance.Error{Kind: instance.KindNotFound, Code: instance.CodeNotFound, Message: notFoundText(ids), InstanceIDs: ids}
}

// execute waits for a command among others of its kind.
func (b *Backend) execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	deadline, _ := ctx.Deadline()
	c, err := b.submit(cmd, deadline)
	if err != nil {
		return instance.Result{}, err
	}
	select {
	case <-c.done:
		return c.result()
	case <-ended(cmd.Term):
		b.withdraw(c)
	case <-ctx.Done():
	}
	select {
	case <-c.done:
		return c.result()
	case <-ctx.Done():
	}
	b.withdraw(c) // the end of the term may have ended ctx too
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.pending == 0 {
		return c.result()
	}
	c.gone = true
	b.leave(b.desks[cmd.Verb], c)
	return instance.Result{}, ctx.Err()
}

// withdraw refuses what of a caller has not gone out, if the term is over.
func (b *Backend) withdraw(c *request) {
	select {
	case <-ended(c.cmd.Term):
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(c.waiting) == 0 {
		return
	}
	units := c.items(c.waiting)
	b.leave(b.desks[c.cmd.Verb], c)
	for _, u := range units {
		u.resolve(nil, u.ids, instance.CheckTerm(c.cmd.Term))
	}
}

// submit puts a caller among those who wait, and sends what can go out. It refuses one
// whose deadline comes before its turn.
func (b *Backend) submit(cmd instance.Command, deadline time.Time) (*request, error) {
	c := newCaller(cmd, deadline)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosing()
	}
	b.seq++
	c.seq = b.seq
	d := b.desks[cmd.Verb]
	now := time.Now()
	if err := d.tooLate(c, now); err != nil {
		return nil, err
	}
	d.enqueue(c)
	b.pumpEntered(d, c)
	return c, nil
}

// tooLate returns the error for a caller that cannot be served within its deadline.
func (d *dispatcher) tooLate(c *request, now time.Time) error {
	if c.deadline.IsZero() {
		return nil
	}
	t := d.tenants[c.cmd.Principal]
	if t == nil {
		t = new(tenant)
	}
	wait := d.wait(now, t, len(c.cmd.IDs), c.key())
	if wait == 0 || !now.Add(wait).After(c.deadline) {
		return nil
	}
	return d.errLimit(now, wait)
}

// errLimit says how the buckets stand, and when to come back.
func (d *dispatcher) errLimit(now time.Time, wait time.Duration) *instance.Error {
	text := fmt.Sprintf("EC2's rate limits do not allow this %s within its deadline: its request bucket holds %.1f of %g and gains %g a second",
		d.verb, max(0, d.requests.level), d.requests.capacity, d.requests.rate(now))
	if d.instances != nil {
		text += fmt.Sprintf(", its instance bucket %.0f of %g and %g a second, and %d instances are waiting",
			max(0, d.instances.level), d.instances.capacity, d.instances.rate(now), d.ids)
	}
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonRequestLimitExceeded,
		Message:    text + "; nothing was changed by this call",
		RetryAfter: wait,
	}
}

// pump sends every batch of a desk that may go out now, and sets a timer for the next.
// The caller holds the lock.
func (b *Backend) pump(d *dispatcher) {
	if b.closed {
		return
	}
	for {
		now := time.Now()
		d.allocate(now)
		d.clearHeads()
		list, wait := d.candidates(now, b.isFree)
		sent := false
		for _, c := range list {
			if group := d.gather(c, now, b.isFree); len(group) > 0 {
				b.launch(d, c.batchQueue, group, now)
				sent = true
				break
			}
		}
		if sent {
			continue
		}
		d.opensAt = time.Time{}
		if wait < never {
			d.opensAt = now.Add(wait)
		}
		d.arm(now)
		return
	}
}

// launch sends a batch on its way. Its tokens are paid.
func (b *Backend) launch(d *dispatcher, l *batchQueue, group []item, now time.Time) {
	l.rounds++
	l.newest = now
	r := &batchRun{
		b: b, d: d, kind: l.batchKey, paid: true,
		appliedUnclaimed:      make(map[instance.ID]instance.StateChange),
		unchangedAfterFailure: make(map[instance.ID]unchanged),
	}
	if l.dryRun == 0 {
		r.acquired = distinct(group)
		for _, id := range r.acquired {
			b.busy[id] = r
		}
	}
	// A batch has its own context: no caller's end is that of the others.
	ctx, cancel := context.WithCancel(context.Background())
	b.rounds[r] = cancel
	b.work.Go(func() {
		defer cancel()
		r.run(ctx, group)
		r.release()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.rounds, r)
		l.rounds--
		d.tidy(l)
		b.pump(d)
	})
}
