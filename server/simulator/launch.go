package simulator

import (
	"context"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// Launch launches instances, as EC2's RunInstances does, and returns once they are
// recorded.
func (s *Service) Launch(ctx context.Context, launch instance.Launch) ([]*instance.Instance, error) {
	if err := s.changeable(ctx); err != nil {
		return nil, err
	}
	launched, err := s.sim.Launch(ctx, launch)
	if err != nil {
		return nil, err
	}
	ids := make([]instance.ID, len(launched))
	for i, inst := range launched {
		ids[i] = inst.ID
	}
	if _, err := s.lifecycle.Refresh(ctx, ids); err != nil {
		return nil, err
	}
	return launched, nil
}

// Modify changes attributes of instances, all or none, and returns once that is
// recorded.
func (s *Service) Modify(ctx context.Context, m instance.Modification) error {
	return s.change(ctx, []sim.Change{{
		IDs:                   m.IDs,
		SetTags:               m.SetTags,
		RemoveTags:            m.RemoveTags,
		RemoveTagValues:       m.RemoveTagValues,
		RemoveAllTags:         m.RemoveAllTags,
		DisableAPIStop:        m.DisableAPIStop,
		DisableAPITermination: m.DisableAPITermination,
		Type:                  m.Type,
	}})
}

// Read lets a read be struck by the faults and buckets of the simulator. Where another
// process commands its own simulator, there is none to have a say.
func (s *Service) Read(ctx context.Context, read instance.Read) (func(*instance.Instance) *instance.Instance, error) {
	if s.owned(ctx) != nil {
		return nil, ctx.Err()
	}
	return s.sim.Read(ctx, read)
}

// StatusDelay is how long after its launch an instance passes its status checks.
func (s *Service) StatusDelay() time.Duration { return s.sim.StatusDelay() }

// change does what happens from outside, and returns once it is recorded.
func (s *Service) change(ctx context.Context, changes []sim.Change) error {
	if err := s.changeable(ctx); err != nil {
		return err
	}
	if err := s.sim.Change(ctx, changes); err != nil {
		return err
	}
	_, err := s.lifecycle.Refresh(ctx, idsOf(changes))
	return err
}
