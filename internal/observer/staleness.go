package observer

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// consistency says how far descriptions can be relied on.
type consistency bool

const (
	// eventual: for a while after a change, a description may show what was before, or
	// leave out what exists, as EC2's may.
	eventual consistency = false
	// strong: the backend was just set to what it describes.
	strong consistency = true
)

// description is what the backend says of one instance; its image is nil if the backend does
// not know it.
type description struct {
	id          instance.ID
	image       *instance.Instance
	consistency consistency
	// reconciling is whether only a full comparison asked for it.
	reconciling bool
}

// agrees reports whether a description says what is known.
func (d description) agrees(known journal.Record, found bool) bool {
	if !found || d.image == nil {
		return !found && d.image == nil
	}
	return known.Instance.Equal(d.image)
}

// disagreement returns how a description differs from what is known.
func (d description) disagreement(known journal.Record, found bool) instance.ChangeType {
	switch {
	case !found:
		return instance.ChangeAdded
	case d.image == nil:
		return instance.ChangeRemoved
	case d.image.State != known.Instance.State:
		return instance.ChangeState
	}
	return instance.ChangeAttributes
}

// freshness is how a description relates to what is recorded.
type freshness uint8

const (
	// current: it is what the journal says now.
	current freshness = iota
	// superseded: something was recorded, or a command was in flight, since the backend was
	// asked.
	superseded
	// stale: it shows what was before a recent change.
	stale
)

// asOf is what was known, and when, as the backend was asked: a description says nothing
// about what came later.
type asOf struct {
	position journal.Position
	at       time.Time
}

func (o *Observer) asOfNow() asOf {
	return asOf{position: o.journal.Head(), at: time.Now().UTC()}
}

// recordDescriptions records what the backend says of instances, as far as it is current.
func (o *Observer) recordDescriptions(ctx context.Context, asked asOf, descriptions []description) ([]freshness, error) {
	term, err := o.Term()
	if err != nil {
		return nil, err
	}
	results := make([]freshness, len(descriptions))
	now := time.Now().UTC()
	news := false
	for i, d := range descriptions {
		known, found := o.journal.Get(d.id)
		if o.tracker.deferDescribe(d.id) {
			results[i] = superseded
		} else {
			results[i] = o.freshness(known, found, d, asked, now)
		}
		news = news || results[i] != current || !d.agrees(known, found) || len(o.tracker.unrecordedBefore(d.id, now, nil)) > 0
	}
	if !news {
		return results, nil
	}
	disagreements := make([]instance.ChangeType, len(descriptions))
	_, err = o.update(ctx, term, func(u *updateTx) error {
		for i, d := range descriptions {
			results[i], disagreements[i] = u.applyDescription(d, asked, now)
		}
		return nil
	})
	if err != nil { // disagreements may still be written to
		return results, err
	}
	for i, d := range descriptions {
		if d.reconciling && disagreements[i] != instance.ChangeUnspecified {
			o.metrics.disagreements[disagreements[i]].Inc()
		}
	}
	return results, nil
}

// applyDescription records a description if it is current. It returns how it differs from what
// was known if that is recorded.
func (u *updateTx) applyDescription(d description, asked asOf, now time.Time) (result freshness, disagreement instance.ChangeType) {
	if u.observer.tracker.deferDescribe(d.id) {
		return superseded, instance.ChangeUnspecified
	}
	u.apply(observation{
		id:         d.id,
		at:         now,
		occurredAt: asked.at,
		source:     instance.SourceReconcile,
		// It may show what was done while the backend responded.
		causedUntil: now,
		image: func(known journal.Record, found bool) (*instance.Instance, bool) {
			result = u.observer.freshness(known, found, d, asked, now)
			news := result == current && !d.agrees(known, found)
			if news {
				disagreement = d.disagreement(known, found)
			}
			return d.image, news
		},
	})
	return result, disagreement
}

// freshness says how a description of an instance without a command in flight relates to
// what is known.
func (o *Observer) freshness(known journal.Record, found bool, d description, asked asOf, now time.Time) freshness {
	switch {
	case d.agrees(known, found), !found:
		return current
	case known.Position.Seq > asked.position.Seq:
		return superseded
	case d.consistency == strong, now.Sub(known.ChangedAt) > o.cfg.Consistency:
		return current
	case d.image == nil:
		if known.Instance.State == instance.StateTerminated {
			return current
		}
		return stale
	case !instance.Reachable(known.Instance.State, d.image.State), older(d.image, known), o.matchesRecent(known, d.image):
		return stale
	}
	return current
}

// matchesRecent reports whether an image shows what was before a recent change, and is not now.
func (o *Observer) matchesRecent(known journal.Record, image *instance.Instance) bool {
	if sameIncarnation(known.Instance, image) {
		return false
	}
	return (known.Previous != nil && sameIncarnation(known.Previous, image)) || o.recentStates.has(image)
}

// older reports whether an image shows an earlier point of the life of an instance than what
// is known. The simulator counts the changes. Otherwise a start changes the launch time, and
// from one start to the next the states have an order. The launch time of a description is
// exact. Until an instance is described, it is taken from a notice or an answer; if a later
// start was inferred, it may be that of an earlier one.
func older(image *instance.Instance, known journal.Record) bool {
	if image.Simulator != nil && known.Instance.Simulator != nil {
		return image.Simulator.Transitions < known.Instance.Simulator.Transitions
	}
	switch d := image.LaunchTime.Sub(known.Instance.LaunchTime); {
	case d != 0 && known.Source == instance.SourceReconcile:
		return d < 0
	case d < -instance.ClockSkew:
		return true
	case d > instance.ClockSkew && image.LaunchTime.After(known.ChangedAt):
		return false
	}
	order := []instance.State{
		instance.StatePending, instance.StateRunning, instance.StateStopping,
		instance.StateStopped, instance.StateShuttingDown, instance.StateTerminated,
	}
	return slices.Index(order, image.State) < slices.Index(order, known.Instance.State)
}
