package sim

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Action is what happens to an instance from outside of this service.
type Action uint8

// The actions.
const (
	// ActionNone changes attributes only.
	ActionNone Action = iota
	// ActionStart is a start from the console; EC2's own restart of an interrupted
	// Spot Instance, too.
	ActionStart
	// ActionStop is a stop from the console.
	ActionStop
	// ActionTerminate is a termination from the console.
	ActionTerminate
	// ActionOSShutdown is what the operating system does: the instance stops, or is
	// terminated if its root device is an instance store. Protections do not hold it.
	ActionOSShutdown
	// ActionSpotStop is an interruption that stops a Spot Instance.
	ActionSpotStop
	// ActionSpotTerminate is an interruption that terminates a Spot Instance.
	ActionSpotTerminate
	// ActionSpotHibernate is an interruption that hibernates a Spot Instance.
	ActionSpotHibernate
	// ActionScheduledStop is a stop for maintenance by AWS.
	ActionScheduledStop
)

// Change is what happens to instances from outside. Attributes change first, then
// the action is taken.
type Change struct {
	// IDs are distinct, 1 to 1000.
	IDs    []instance.ID
	Action Action
	// SetTags and RemoveTags change tags; keys to remove need not be there.
	SetTags    map[string]string
	RemoveTags []string
	// RemoveTagValues removes tags where they have this value, and RemoveAllTags all that
	// there are before others are set.
	RemoveTagValues map[string]string
	RemoveAllTags   bool
	// DisableAPIStop and DisableAPITermination change protections unless nil.
	DisableAPIStop        *bool
	DisableAPITermination *bool
	// Type is another instance type for stopped instances, unless empty.
	Type string
}

// maxChanges bounds the changes of a call and the ids of a change.
const maxChanges = 1000

// Change does what happens from outside, all of it or nothing, in order. What has
// not the right form is reported first, all of it together; then ids that do not
// exist; then what the states of the instances forbid.
func (b *Backend) Change(ctx context.Context, changes []Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now, closed := b.lock()
	if closed != nil {
		return closed
	}
	defer b.unlock(now)
	if err := checkChanges(changes); err != nil {
		return err
	}
	if err := b.rehearse(changes, now); err != nil {
		return err
	}
	o := op{number: b.nextCallLocked(), now: now}
	for i := range changes {
		for _, id := range changes[i].IDs {
			b.happen(o, &changes[i], b.machines[id])
		}
	}
	return nil
}

func checkChanges(changes []Change) error {
	var problems violations
	if len(changes) == 0 || len(changes) > maxChanges {
		problems.add("changes", "are %d: want 1 to %d", len(changes), maxChanges)
	}
	for i := range changes {
		changes[i].check(fmt.Sprintf("changes[%d]", i), &problems)
	}
	return problems.err()
}

func (c *Change) check(path string, problems *violations) {
	if len(c.IDs) == 0 || len(c.IDs) > maxChanges {
		problems.add(path+".instance_ids", "are %d: want 1 to %d", len(c.IDs), maxChanges)
	}
	seen := map[instance.ID]bool{}
	for i, id := range c.IDs {
		at := fmt.Sprintf("%s.instance_ids[%d]", path, i)
		if err := malformed(id); err != nil {
			problems.refuse(at, err)
		} else if seen[id] {
			problems.add(at, "is %s, which comes twice", id)
		}
		seen[id] = true
	}
	if c.Action > ActionScheduledStop {
		problems.add(path+".action", "is not an action")
	}
	if c.Action == ActionNone && !c.changesAttributes() {
		problems.add(path, "changes nothing")
	}
	checkTags(path+".set_tags", c.SetTags, problems)
	for i, key := range c.RemoveTags {
		if _, set := c.SetTags[key]; set || key == "" {
			problems.add(fmt.Sprintf("%s.remove_tags[%d]", path, i), "is %.40q: want a key that is not set as well", key)
		}
	}
	if c.Type != "" && !typeForm.MatchString(c.Type) {
		problems.refuse(path+".instance_type", errInvalidType(c.Type))
	}
}

func (c *Change) changesTags() bool {
	return len(c.SetTags)+len(c.RemoveTags)+len(c.RemoveTagValues) > 0 || c.RemoveAllTags
}

func (c *Change) changesAttributes() bool {
	return c.changesTags() || c.DisableAPIStop != nil || c.DisableAPITermination != nil || c.Type != ""
}

// rehearse goes through the changes on copies of the images, and reports the first
// thing that will not work for each instance.
func (b *Backend) rehearse(changes []Change, now time.Time) error {
	images := map[instance.ID]*instance.Instance{}
	unknown := map[instance.ID]bool{}
	var missing []instance.ID
	for i := range changes {
		for _, id := range changes[i].IDs {
			if m := b.machines[id]; m != nil {
				images[id] = m.inst
			} else if !unknown[id] {
				unknown[id] = true
				missing = append(missing, id)
			}
		}
	}
	if len(missing) > 0 {
		return instance.NotFound(missing...)
	}
	var refusals []*instance.Error
	for i := range changes {
		for _, id := range changes[i].IDs {
			image := images[id]
			if image == nil {
				continue // refused already
			}
			next, err := b.tryOut(&changes[i], image, now)
			if err != nil {
				refusals = append(refusals, err)
			}
			images[id] = next
		}
	}
	return joinRefusals(refusals)
}

// joinRefusals makes one error of several, with the code of the first.
func joinRefusals(refusals []*instance.Error) error {
	if len(refusals) == 0 {
		return nil
	}
	all := *refusals[0]
	const named = 5
	for i, err := range refusals[1:] {
		if i+1 == named {
			all.Message += fmt.Sprintf(" (and %d more)", len(refusals)-named)
			break
		}
		all.Message += " " + err.Message
		all.InstanceIDs = append(all.InstanceIDs, err.InstanceIDs...)
	}
	return &all
}

// tryOut returns an image with the state and the attributes that the next change
// will find.
func (b *Backend) tryOut(c *Change, image *instance.Instance, now time.Time) (*instance.Instance, *instance.Error) {
	if c.Type != "" && image.State != instance.StateStopped {
		return nil, errNotStopped(image.ID)
	}
	if c.DisableAPITermination != nil && image.Lifecycle == lifecycleSpot {
		err := errSpotTerminationProtection("Modifying")
		err.InstanceIDs = []instance.ID{image.ID}
		return nil, err
	}
	next := c.attributes(image)
	if len(next.Tags) > maxTags {
		return nil, refused(codeTagLimit, image.ID, "The instance '%s' would have more than %d tags.", image.ID, maxTags)
	}
	if err := b.checkAction(c.Action, next, now); err != nil {
		return nil, err
	}
	switch a := c.Action; {
	case a == ActionStart && next.State == instance.StateStopped:
		next.State, next.StateReason = instance.StatePending, nil
	case a.terminates(next) && next.State != instance.StateTerminated:
		next.State = instance.StateShuttingDown
	case a.stops() && (next.State == instance.StatePending || next.State == instance.StateRunning):
		next.State = instance.StateStopping
	}
	return next, nil
}

// attributes returns a copy of the image with the attributes changed.
func (c *Change) attributes(image *instance.Instance) *instance.Instance {
	next := *image
	sim := *image.Simulator
	next.Simulator = &sim
	if c.changesTags() {
		next.Tags = maps.Clone(image.Tags)
		if next.Tags == nil || c.RemoveAllTags {
			next.Tags = map[string]string{}
		}
		for _, key := range c.RemoveTags {
			delete(next.Tags, key)
		}
		for key, value := range c.RemoveTagValues {
			if have, ok := next.Tags[key]; ok && have == value {
				delete(next.Tags, key)
			}
		}
		maps.Copy(next.Tags, c.SetTags)
	}
	if c.DisableAPIStop != nil {
		sim.DisableAPIStop = *c.DisableAPIStop
	}
	if c.DisableAPITermination != nil {
		sim.DisableAPITermination = *c.DisableAPITermination
	}
	if c.Type != "" && family(c.Type) != family(image.Type) {
		sim.CPUCredits = defaultCredits(c.Type, image.Tenancy)
	}
	if c.Type != "" {
		next.Type = c.Type
	}
	return &next
}

func (a Action) stops() bool {
	switch a {
	case ActionStop, ActionOSShutdown, ActionSpotStop, ActionSpotHibernate, ActionScheduledStop:
		return true
	case ActionNone, ActionStart, ActionTerminate, ActionSpotTerminate:
	}
	return false
}

func (a Action) terminates(inst *instance.Instance) bool {
	return a == ActionTerminate || a == ActionSpotTerminate ||
		a == ActionOSShutdown && inst.RootDeviceType == rootInstanceStore
}

// checkAction says whether an action can be taken. Actions of the console obey the
// rules of the verbs.
func (b *Backend) checkAction(a Action, inst *instance.Instance, now time.Time) *instance.Error {
	switch a {
	case ActionNone:
		return nil
	case ActionStart:
		if err := b.checkStart(inst, now); err != nil && !interrupted(inst) {
			return err
		}
		return nil
	case ActionStop:
		return b.checkStop(instance.Command{Verb: instance.VerbStop}, inst)
	case ActionTerminate:
		return checkTerminate(inst)
	case ActionOSShutdown, ActionScheduledStop:
		return checkRunning(a, inst)
	case ActionSpotStop, ActionSpotTerminate, ActionSpotHibernate:
		if inst.Lifecycle != lifecycleSpot {
			return refused(instance.CodeUnsupportedOperation, inst.ID, "The instance '%s' is not a Spot Instance.", inst.ID)
		}
		if inst.Simulator.SpotInstanceType == spotOneTime && a != ActionSpotTerminate {
			return refused(instance.CodeUnsupportedOperation, inst.ID, "The Spot Instance '%s' is terminated by an interruption: its request is one-time.", inst.ID)
		}
		if a == ActionSpotHibernate && !inst.Simulator.HibernationConfigured {
			return errNoHibernation(inst.ID)
		}
		return checkRunning(a, inst)
	}
	return nil
}

func checkRunning(a Action, inst *instance.Instance) *instance.Error {
	if inst.State != instance.StateRunning {
		return refused(instance.CodeIncorrectInstanceState, inst.ID, "The instance '%s' is not in the 'running' state.", inst.ID)
	}
	if inst.RootDeviceType == rootInstanceStore && a.stops() && !a.terminates(inst) {
		return errInstanceStore(inst.ID, "stopped")
	}
	return nil
}

// happen makes a change that was rehearsed.
func (b *Backend) happen(o op, c *Change, m *machine) {
	m.calls++
	if next := c.attributes(m.inst); !next.Equal(m.inst) {
		b.replaceLocked(m, next, m.stamp(o.now))
	}
	state := m.inst.State
	switch a := c.Action; {
	case a == ActionStart:
		if state == instance.StateStopped {
			o.verb = instance.VerbStart
			b.start(o, m)
		}
	case a.terminates(m.inst):
		if state != instance.StateShuttingDown && state != instance.StateTerminated {
			o.verb = instance.VerbTerminate
			b.terminate(o, m, a.ending(o))
		}
	case a.stops():
		if state == instance.StatePending || state == instance.StateRunning {
			o.verb = instance.VerbStop
			b.stop(o, m, a.ending(o))
		}
	}
}

// ending returns the reasons of an action that stops or terminates.
func (a Action) ending(o op) ending {
	switch a {
	case ActionOSShutdown:
		return ending{reason: reasonOSShutdown}
	case ActionSpotStop:
		return ending{reason: reasonSpotStop, transition: serviceInitiated(o.now)}
	case ActionSpotHibernate:
		return ending{reason: reasonSpotStop, transition: serviceInitiated(o.now), hibernate: true}
	case ActionSpotTerminate:
		return ending{reason: reasonSpotTerminate, transition: serviceInitiated(o.now)}
	case ActionScheduledStop:
		return ending{reason: reasonScheduledStop, transition: serviceInitiated(o.now)}
	case ActionNone, ActionStart, ActionStop, ActionTerminate:
	}
	return ending{reason: reasonUserStop, transition: userInitiated(o.now)}
}
