package lifecycle

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// description is what the backend says of one instance; its image is nil when the
// backend does not know it.
type description struct {
	id    instance.ID
	image *instance.Instance
	trust trust
}

// verdict says what became of a description.
type verdict uint8

const (
	// believed: it is what the journal says now.
	believed verdict = iota
	// overtaken: something was recorded, or a command was in flight, since the backend
	// was asked.
	overtaken
	// stale: it shows what was before a recent change.
	stale
)

// fence is what was known, and when, as the backend was asked: a description says
// nothing about what came later.
type fence struct {
	position journal.Position
	at       time.Time
}

func (s *Service) fence() fence {
	return fence{position: s.journal.Head(), at: time.Now().UTC()}
}

// recordDescriptions records what the backend says of instances, where it can be
// believed.
func (s *Service) recordDescriptions(ctx context.Context, asked fence, descriptions []description) ([]verdict, error) {
	term, err := s.owner()
	if err != nil {
		return nil, err
	}
	verdicts := make([]verdict, len(descriptions))
	now := time.Now().UTC()
	anything := false
	for i, d := range descriptions {
		known, found := s.journal.Get(d.id)
		if s.tracker.deferDescribe(d.id) {
			verdicts[i] = overtaken
		} else {
			verdicts[i] = s.judge(known, found, d, asked, now)
		}
		anything = anything || verdicts[i] != believed || !agrees(known, found, d) || len(s.tracker.unrecordedBefore(d.id, now, nil)) > 0
	}
	if !anything {
		return verdicts, nil
	}
	_, err = s.update(ctx, term, func(r *recording) error {
		for i, d := range descriptions {
			if s.tracker.deferDescribe(d.id) {
				verdicts[i] = overtaken
				continue
			}
			s.recordUnrecorded(r, d.id, now, nil) // which overtakes the description
			known, found := r.Get(d.id)
			verdicts[i] = s.judge(known, found, d, asked, now)
			switch {
			case verdicts[i] != believed || agrees(known, found, d):
			case d.image == nil:
				remove(r, known)
			default:
				reduce(r, sighting{
					image:      d.image,
					occurredAt: asked.at,
					source:     instance.SourceReconcile,
					// It may show what was done while the backend answered.
					candidates: s.tracker.possibleCauses(d.id, known.ChangedAt, now),
				})
			}
		}
		return nil
	})
	return verdicts, err
}

// agrees reports whether a description says what is known.
func agrees(known journal.Record, found bool, d description) bool {
	if !found || d.image == nil {
		return !found && d.image == nil
	}
	return known.Instance.Equal(d.image)
}

// judge says whether a description can be believed of an instance that no command is
// about.
func (s *Service) judge(known journal.Record, found bool, d description, asked fence, now time.Time) verdict {
	switch {
	case agrees(known, found, d), !found:
		return believed
	case known.Position.Seq > asked.position.Seq:
		return overtaken
	case d.trust == certain, now.Sub(known.ChangedAt) > s.cfg.Consistency:
		return believed
	case d.image == nil:
		if known.Instance.State == instance.StateTerminated {
			return believed
		}
		return stale
	case !instance.Reachable(known.Instance.State, d.image.State), older(d.image, known), s.wasSo(known, d.image):
		return stale
	}
	return believed
}

// launchSlack is how far apart the launch times of one start may be: that of a notice or
// an answer is taken for it until the instance is described.
const launchSlack = 3 * time.Second

// older reports whether an image shows an earlier point of the life of an instance than
// what is known. The simulator counts the changes. Otherwise, a start changes the launch
// time, and from one start to the next the states have an order. The launch time that is
// known may be that of an earlier start, when a later one was inferred.
func older(image *instance.Instance, known journal.Record) bool {
	if image.Simulator != nil && known.Instance.Simulator != nil {
		return image.Simulator.Transitions < known.Instance.Simulator.Transitions
	}
	switch d := image.LaunchTime.Sub(known.Instance.LaunchTime); {
	case d < -launchSlack:
		return true
	case d > launchSlack && image.LaunchTime.After(known.ChangedAt):
		return false
	}
	order := []instance.State{
		instance.StatePending, instance.StateRunning, instance.StateStopping,
		instance.StateStopped, instance.StateShuttingDown, instance.StateTerminated,
	}
	return slices.Index(order, image.State) < slices.Index(order, known.Instance.State)
}

// wasSo reports whether an image shows what was before a recent change, and is not now.
func (s *Service) wasSo(known journal.Record, image *instance.Instance) bool {
	if sameLife(known.Instance, image) {
		return false
	}
	return (known.Previous != nil && sameLife(known.Previous, image)) || s.past.has(image)
}

// life is the point of its life at which an image shows an instance: a start changes the
// launch time, a stop and a failed start the reason, which is not known of a state that was
// inferred. These are in whole seconds; the simulator counts its changes.
type life struct {
	state     instance.State
	simulated bool
	launched  time.Time
	reason    *instance.StateReason
	changes   uint64
}

func lifeOf(i *instance.Instance) life {
	l := life{state: i.State, launched: i.LaunchTime, reason: i.StateReason}
	if i.Simulator != nil {
		l.simulated, l.changes = true, i.Simulator.Transitions
	}
	return l
}

func (l life) same(o life) bool {
	return l.state == o.state && l.launched.Equal(o.launched) &&
		(!l.simulated || !o.simulated || l.changes == o.changes) &&
		(l.reason == nil || o.reason == nil || *l.reason == *o.reason)
}

func sameLife(a, b *instance.Instance) bool { return lifeOf(a).same(lifeOf(b)) }
