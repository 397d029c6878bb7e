package sim

import (
	"context"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// call is a command that passes through the steps. Its slices are parallel.
type call struct {
	op
	cmd      instance.Command
	ids      []instance.ID // distinct
	machines []*machine    // nil where there is no such instance
	refused  []*instance.Error
	// partial is the error beside the result if a whole call was carried out for some
	// instances only.
	partial *instance.Error
}

// step checks the instances of a call that are not rejected yet. It marks them as rejected,
// or rejects the whole call.
type step func(*Backend, *call) *instance.Error

// The order of checks. EC2 does not document it; a dry run is known to end before existence
// and state are checked.
var (
	permissionFirst = []step{(*Backend).permit, (*Backend).endDryRun, (*Backend).find, (*Backend).examine, (*Backend).reserve, (*Backend).provide}
	existenceFirst  = []step{(*Backend).find, (*Backend).permit, (*Backend).endDryRun, (*Backend).examine, (*Backend).reserve, (*Backend).provide}
)

// Execute carries out a command as EC2 does; the observer's Backend interface has the
// contract. Of concurrent calls, exactly one finds a stopped instance stopped.
func (b *Backend) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	result, err := b.execute(ctx, cmd)
	b.metrics.countCommand(cmd.Verb, result, err)
	return result, err
}

func (b *Backend) execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	if err := b.stall(ctx, cmd.Verb, cmd.IDs); err != nil {
		return instance.Result{}, err
	}
	if cmd.Sent != nil && !cmd.DryRun {
		cmd.Sent(cmd.IDs)
	}
	now, closed := b.lock()
	if closed != nil {
		return instance.Result{}, closed
	}
	defer b.unlock(now)
	if err := instance.CheckTerm(cmd.Term); err != nil {
		return instance.Result{}, err
	}
	c := &call{op: op{verb: cmd.Verb, number: b.nextCallLocked(), now: now}, cmd: cmd}
	result, refusal := b.executeLocked(c)
	if refusal != nil {
		return result, refusal
	}
	if f := b.strikeCallLocked(c.op, AnswerLost, c.ids, c.machines); f != nil {
		return instance.Result{}, errAnswerLost()
	}
	return result, nil
}

// stall waits for the delay of a slow-call fault. If ctx ends first, nothing has happened.
func (b *Backend) stall(ctx context.Context, verb instance.Verb, ids []instance.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	delay, err := b.slowness(verb, ids)
	if err != nil || delay == 0 {
		return err
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (b *Backend) slowness(verb instance.Verb, ids []instance.ID) (time.Duration, error) {
	now, closed := b.lock()
	if closed != nil {
		return 0, closed
	}
	defer b.unlock(now)
	if len(b.plan) == 0 {
		return 0, nil
	}
	if f := b.strikeCallLocked(op{verb: verb, number: b.nextCallLocked(), now: now}, SlowCall, ids, b.machinesLocked(ids)); f != nil {
		return f.Delay, nil
	}
	return 0, nil
}

func (b *Backend) executeLocked(c *call) (instance.Result, *instance.Error) {
	if err := b.resolve(c); err != nil {
		return instance.Result{}, err
	}
	if err := b.admit(c.op, c.ids, c.machines, b.buckets.request(c.verb, false)); err != nil {
		return instance.Result{}, err
	}
	steps := permissionFirst
	if b.config.Options.ExistenceFirst {
		steps = existenceFirst
	}
	for _, decide := range steps {
		if err := decide(b, c); err != nil {
			return instance.Result{}, err
		}
	}
	result := instance.Result{Changes: make([]instance.StateChange, 0, len(c.ids))}
	for i, m := range c.machines {
		switch {
		case c.refused[i] == nil:
			result.Changes = append(result.Changes, b.apply(c, m))
		case c.cmd.PerInstance:
			result.Failures = append(result.Failures, instance.Failure{ID: c.ids[i], Err: c.refused[i]})
		}
	}
	return result, c.partial
}

// resolve checks the form of the command and looks up its ids.
func (b *Backend) resolve(c *call) *instance.Error {
	maxIDs := b.config.Options.MaxIDs
	switch c.verb {
	case instance.VerbStart, instance.VerbStop, instance.VerbReboot:
		if len(c.cmd.IDs) == 0 {
			return errNoIDs(b.config.Options.NoIDsIsMissingParameter)
		}
	case instance.VerbTerminate:
		maxIDs = maxTerminateIDs
		if len(c.cmd.IDs) == 0 {
			return errNoIDs(false)
		}
	default:
		return errInvalid("InvalidAction", "The action "+string(c.verb)+" is not valid for this web service.")
	}
	var missing map[instance.ID]bool
	c.ids = make([]instance.ID, 0, len(c.cmd.IDs))
	c.machines = make([]*machine, 0, len(c.cmd.IDs))
	for _, id := range c.cmd.IDs {
		m := b.machines[id]
		if m == nil {
			if id == "" {
				return errNoIDs(true)
			}
			if err := malformed(id); err != nil {
				return err
			}
			if missing[id] {
				continue
			}
			if missing == nil {
				missing = map[instance.ID]bool{}
			}
			missing[id] = true
		} else {
			if m.named == c.number {
				continue
			}
			m.named = c.number
			m.calls++
		}
		c.ids = append(c.ids, id)
		c.machines = append(c.machines, m)
	}
	if len(c.ids) > maxIDs {
		return errTooManyIDs()
	}
	c.refused = make([]*instance.Error, len(c.ids))
	return nil
}

// admit applies throttling and the faults of the call as a whole, as EC2 does before it
// reads a request.
func (b *Backend) admit(o op, ids []instance.ID, machines []*machine, requests *bucket) *instance.Error {
	if b.strikeCallLocked(o, Unavailable, ids, machines) != nil {
		return errUnavailable()
	}
	if b.strikeCallLocked(o, InternalError, ids, machines) != nil {
		return errInternal()
	}
	if b.strikeCallLocked(o, RequestLimitExceeded, ids, machines) != nil {
		return b.errThrottled(o.verb, retryThrottled)
	}
	if b.config.Throttle {
		if wait := requests.take(o.now, 1); wait > 0 {
			return b.errThrottled(o.verb, wait)
		}
	}
	return nil
}

// permit rejects calls without permission.
func (b *Backend) permit(c *call) *instance.Error {
	return c.sift(func(m *machine, id instance.ID) *instance.Error {
		if m != nil && b.strikeLocked(c.op, Unauthorized, m) != nil {
			return b.errUnauthorized(c, id)
		}
		return nil
	})
}

// endDryRun answers a dry run, which fails if the caller lacks permission for a single
// instance.
func (b *Backend) endDryRun(c *call) *instance.Error {
	if !c.cmd.DryRun {
		return nil
	}
	for _, err := range c.refused {
		if err != nil {
			return err
		}
	}
	return errDryRun()
}

// find rejects ids that do not exist; the error of a whole call names all of them.
func (b *Backend) find(c *call) *instance.Error {
	var missing []instance.ID
	for i, m := range c.machines {
		switch {
		case m != nil:
		case c.cmd.PerInstance:
			c.refused[i] = instance.NotFound(c.ids[i])
		default:
			missing = append(missing, c.ids[i])
		}
	}
	if len(missing) > 0 {
		return instance.NotFound(missing...)
	}
	return nil
}

// examine rejects what the state or an attribute of an instance does not allow.
func (b *Backend) examine(c *call) *instance.Error {
	first := c.sift(func(m *machine, _ instance.ID) *instance.Error { return b.check(c.cmd, m.inst, c.now) })
	if first == nil || c.verb != instance.VerbTerminate {
		return first
	}
	return c.spareZones(first)
}

// spareZones rejects all instances in the Availability Zones of protected instances, and
// accepts the others. Source: EC2 API Reference, TerminateInstances.
func (c *call) spareZones(first *instance.Error) *instance.Error {
	spared := map[string]bool{}
	for i, m := range c.machines {
		if c.refused[i] != nil {
			spared[m.inst.AvailabilityZone] = true
		}
	}
	left := false
	for i, m := range c.machines {
		if spared[m.inst.AvailabilityZone] {
			c.refused[i] = first
		} else {
			left = true
		}
	}
	if !left {
		return first
	}
	c.partial = first
	return nil
}

// reserve takes a token for each instance.
func (b *Backend) reserve(c *call) *instance.Error {
	bucket := b.buckets.resource[c.verb]
	if !b.config.Throttle || bucket == nil {
		return nil
	}
	wanted := 0
	for _, err := range c.refused {
		if err == nil {
			wanted++
		}
	}
	wait := bucket.take(c.now, wanted)
	if wait == 0 {
		return nil
	}
	throttled := b.errThrottled(c.verb, wait)
	switch b.config.Options.ThrottledBatch {
	case ThrottledBatchTakesNothing:
	case ThrottledBatchTakesTokens:
		bucket.drain()
	case ThrottledBatchIsCarriedOutInPart:
		left := bucket.drain()
		if left == 0 {
			return throttled
		}
		for i, err := range c.refused {
			switch {
			case err != nil:
			case left > 0:
				left--
			default:
				c.refused[i] = throttled
			}
		}
		if !c.cmd.PerInstance {
			c.partial = throttled
		}
		return nil
	}
	return throttled
}

// provide rejects starts for which capacity is insufficient.
func (b *Backend) provide(c *call) *instance.Error {
	if c.verb != instance.VerbStart || len(b.plan) == 0 {
		return nil
	}
	for i, m := range c.machines {
		if c.refused[i] != nil || m.inst.State != instance.StateStopped {
			continue
		}
		f, err := b.shortage(c, m)
		if err == nil {
			continue
		}
		c.refused[i] = err
		switch {
		case c.cmd.PerInstance:
		case !f.Partial:
			return err
		case c.partial == nil:
			c.partial = err
		}
	}
	return nil
}

// shortage returns the fault because of which capacity for a machine is insufficient, if
// there is one.
func (b *Backend) shortage(c *call, m *machine) (*planned, *instance.Error) {
	if f := b.strikeLocked(c.op, InsufficientCapacity, m); f != nil {
		return f, errCapacity(m.inst)
	}
	if f := b.strikeLocked(c.op, InstanceLimitExceeded, m); f != nil {
		return f, errInstanceLimit(len(c.ids), instanceQuota)
	}
	if f := b.strikeLocked(c.op, VcpuLimitExceeded, m); f != nil {
		return f, errVcpuLimit()
	}
	return nil, nil
}

// sift applies a check to the instances that are not rejected yet. For a whole call it
// returns the first error.
func (c *call) sift(check func(*machine, instance.ID) *instance.Error) *instance.Error {
	var first *instance.Error
	for i, m := range c.machines {
		if c.refused[i] != nil {
			continue
		}
		if c.refused[i] = check(m, c.ids[i]); first == nil {
			first = c.refused[i]
		}
	}
	if c.cmd.PerInstance {
		return nil
	}
	return first
}
