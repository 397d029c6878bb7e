package observer

import (
	"time"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

// maxRecentStates is how many earlier states are remembered, whatever happens within the time
// that they are to be kept: about 4 MiB of memory, and more than EC2 lets anybody cause in a
// minute.
const maxRecentStates = 1 << 14

// recentStates remembers for a while what instances were before they changed, to tell a stale
// description from a change back.
type recentStates struct {
	byInstance *expiring.Cache[instance.ID, incarnation]
}

func newRecentStates(keep time.Duration) recentStates {
	return recentStates{expiring.New[instance.ID, incarnation](keep, maxRecentStates)}
}

// add remembers what an instance was, nil for nothing.
func (r recentStates) add(image *instance.Instance) {
	if image != nil {
		r.byInstance.Add(image.ID, incarnationOf(image))
	}
}

// has reports whether the instance recently was as the image shows it.
func (r recentStates) has(image *instance.Instance) bool {
	return r.byInstance.Any(image.ID, incarnationOf(image).same)
}

// incarnation is the point of its life at which an image shows an instance. A start changes
// the launch time, in whole seconds; a stop and a failed start change the reason, which is
// not known of a state that was inferred; the simulator counts its changes.
type incarnation struct {
	state     instance.State
	simulated bool
	launched  time.Time
	reason    *instance.StateReason
	changes   uint64
}

func incarnationOf(i *instance.Instance) incarnation {
	in := incarnation{state: i.State, launched: i.LaunchTime, reason: i.StateReason}
	if i.Simulator != nil {
		in.simulated, in.changes = true, i.Simulator.Transitions
	}
	return in
}

func (in incarnation) same(other incarnation) bool {
	return in.state == other.state && in.launched.Equal(other.launched) &&
		(!in.simulated || !other.simulated || in.changes == other.changes) &&
		(in.reason == nil || other.reason == nil || *in.reason == *other.reason)
}

func sameIncarnation(a, b *instance.Instance) bool { return incarnationOf(a).same(incarnationOf(b)) }
