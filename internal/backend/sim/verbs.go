package sim

import (
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// check returns an error unless the state and attributes of an instance allow a verb.
// Together with apply it is the table of results by state.
func (b *Backend) check(cmd instance.Command, inst *instance.Instance, now time.Time) *instance.Error {
	switch cmd.Verb {
	case instance.VerbStart:
		return b.checkStart(inst, now)
	case instance.VerbStop:
		return b.checkStop(cmd, inst)
	case instance.VerbReboot:
		if inst.State == instance.StateRunning || inst.State == instance.StateTerminated {
			return nil
		}
		return errNotRebootable(b.config.Options.RebootCode, inst)
	case instance.VerbTerminate:
		return checkTerminate(inst)
	}
	return nil
}

func (b *Backend) checkStart(inst *instance.Instance, now time.Time) *instance.Error {
	if inst.RootDeviceType == rootInstanceStore {
		return errInstanceStore(inst.ID, "started")
	}
	switch inst.State {
	case instance.StateStopping, instance.StateShuttingDown, instance.StateTerminated:
		return errNotStartable(inst.ID)
	case instance.StateStopped:
		if unlimitedOnHost(inst) {
			return errUnlimitedOnHost(b.config.Options.UnlimitedOnHostCode, inst.ID)
		}
		if interrupted(inst) || inst.Lifecycle == lifecycleSpot && instance.WallClock(now).Before(inst.Simulator.NextAt) {
			return errSpotRequest(inst.ID)
		}
	case instance.StateUnspecified, instance.StatePending, instance.StateRunning:
	}
	return nil
}

// unlimitedOnHost reports whether an instance is a T3 with host tenancy and unlimited CPU
// credits. EC2's documentation of StartInstances mentions T3 only: no other burstable type
// runs on a Dedicated Host with unlimited credits.
func unlimitedOnHost(inst *instance.Instance) bool {
	return family(inst.Type) == "t3" && inst.Tenancy == tenancyHost && inst.Simulator.CPUCredits == creditsUnlimited
}

// interrupted reports whether an instance is a Spot Instance that EC2 stopped, and that
// only EC2 can start again. Source: EC2 User Guide, "Spot Instance interruptions".
func interrupted(inst *instance.Instance) bool {
	return inst.Lifecycle == lifecycleSpot && inst.StateReason != nil && inst.StateReason.Code == reasonSpotStop.Code
}

func family(instanceType string) string {
	f, _, _ := strings.Cut(instanceType, ".")
	return f
}

func (b *Backend) checkStop(cmd instance.Command, inst *instance.Instance) *instance.Error {
	if inst.RootDeviceType == rootInstanceStore {
		return errInstanceStore(inst.ID, "stopped")
	}
	switch inst.State {
	case instance.StateShuttingDown, instance.StateTerminated:
		return errNotStoppable(inst.ID)
	case instance.StatePending:
		if !inst.Simulator.EverRunning || b.config.Options.RefuseStopOfPending {
			return errNeverRan(inst.ID)
		}
	case instance.StateStopping, instance.StateStopped:
		return nil
	case instance.StateUnspecified, instance.StateRunning:
	}
	switch s := inst.Simulator; {
	case s.SpotInstanceType == spotOneTime:
		return errSpotOneTime(inst.ID)
	case s.DisableAPIStop:
		return errProtected(inst.ID, "stopped", "disableApiStop")
	case cmd.Hibernate && !s.HibernationConfigured:
		return errNoHibernation(inst.ID)
	}
	return nil
}

func checkTerminate(inst *instance.Instance) *instance.Error {
	switch s := inst.Simulator; {
	case inst.State == instance.StateShuttingDown, inst.State == instance.StateTerminated:
		return nil
	case s.DisableAPITermination:
		return errProtected(inst.ID, "terminated", "disableApiTermination")
	case s.DisableAPIStop:
		return errProtected(inst.ID, "terminated", "disableApiStop")
	}
	return nil
}

// apply carries out a verb on an instance that allows it.
func (b *Backend) apply(c *call, m *machine) instance.StateChange {
	before := m.inst
	switch c.verb {
	case instance.VerbStart:
		if before.State == instance.StateStopped {
			b.start(c.op, m)
		}
	case instance.VerbStop:
		b.applyStop(c, m)
	case instance.VerbTerminate:
		b.applyTerminate(c, m)
	case instance.VerbReboot: // changes no state, and nothing that is simulated
	}
	at := m.changed
	if m.inst == before {
		at = instance.WallClock(c.now)
	}
	return instance.StateChange{ID: before.ID, Previous: before.State, Current: m.inst.State, At: at, After: m.inst}
}

func (b *Backend) applyStop(c *call, m *machine) {
	switch m.inst.State {
	case instance.StatePending, instance.StateRunning:
		e := ending{reason: reasonUserStop, transition: userInitiated(c.now), skipShutdown: c.cmd.SkipOSShutdown}
		if c.cmd.Hibernate && b.canHibernate(m, c.now) {
			e.reason, e.hibernate = reasonUserHibernate, true
		}
		b.stop(c.op, m, e)
	case instance.StateStopping:
		if c.cmd.Force {
			b.unstick(c.op, m, instance.StateStopped)
		}
	case instance.StateUnspecified, instance.StateShuttingDown, instance.StateTerminated, instance.StateStopped:
	}
}

// canHibernate reports whether an instance that is configured for hibernation is ready for
// it: some time after its start, or if it was created running.
func (b *Backend) canHibernate(m *machine, now time.Time) bool {
	return m.inst.State == instance.StateRunning &&
		(m.inst.Simulator.Transitions == 0 || now.Sub(m.inst.LaunchTime) >= b.scale(hibernationWarmUp))
}

func (b *Backend) applyTerminate(c *call, m *machine) {
	switch m.inst.State {
	case instance.StatePending, instance.StateRunning, instance.StateStopping, instance.StateStopped:
		b.terminate(c.op, m, ending{reason: reasonUserStop, transition: userInitiated(c.now), skipShutdown: c.cmd.SkipOSShutdown})
	case instance.StateShuttingDown:
		if c.cmd.Force {
			b.unstick(c.op, m, instance.StateTerminated)
		}
	case instance.StateUnspecified, instance.StateTerminated:
	}
}
