package simulator

import (
	"context"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Service implements SimulatorService.
type Service struct {
	// A method that is missing does not compile.
	instancedv1.UnsafeSimulatorServiceServer

	lifecycle *lifecycle.Service
	sim       *sim.Backend
}

// New returns a service for a simulator and the service layer that observes it.
func New(l *lifecycle.Service, s *sim.Backend) *Service {
	return &Service{lifecycle: l, sim: s}
}

// Register registers the service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	instancedv1.RegisterSimulatorServiceServer(r, s)
}

// changeable refuses callers who may not change the simulator, and where it cannot be changed.
func (s *Service) changeable(ctx context.Context) error {
	if err := s.lifecycle.MayChangeSimulator(ctx); err != nil {
		return err
	}
	return s.owned(ctx)
}

// owned refuses where another process commands its own simulator, or where this one is
// yet to learn what the journal knows: what is done to it then would be lost.
func (s *Service) owned(ctx context.Context) error {
	_, err := s.lifecycle.Refresh(ctx, nil)
	return err
}

// CreateInstances adds instances and faults.
func (s *Service) CreateInstances(ctx context.Context, req *instancedv1.CreateInstancesRequest) (*instancedv1.CreateInstancesResponse, error) {
	if err := s.changeable(ctx); err != nil {
		return nil, err
	}
	specs, faults := Fleet(req)
	created, err := s.sim.Create(ctx, specs, faults...)
	if err != nil {
		return nil, err
	}
	ids := make([]instance.ID, len(created))
	names := make([]string, len(created))
	for i, inst := range created {
		ids[i], names[i] = inst.ID, string(inst.ID)
	}
	cursor, err := s.lifecycle.Refresh(ctx, ids)
	if err != nil {
		return nil, err
	}
	return &instancedv1.CreateInstancesResponse{InstanceIds: names, Cursor: cursor}, nil
}

// ChangeInstances does what happens from outside.
func (s *Service) ChangeInstances(ctx context.Context, req *instancedv1.ChangeInstancesRequest) (*instancedv1.ChangeInstancesResponse, error) {
	if err := s.changeable(ctx); err != nil {
		return nil, err
	}
	cursor := s.lifecycle.Cursor()
	if err := s.change(ctx, outsideChanges(req.GetChanges())); err != nil {
		return nil, err
	}
	return &instancedv1.ChangeInstancesResponse{Cursor: cursor}, nil
}

// idsOf returns the instances of changes, each once.
func idsOf(changes []sim.Change) []instance.ID {
	seen := make(map[instance.ID]struct{})
	var ids []instance.ID
	for _, c := range changes {
		for _, id := range c.IDs {
			if _, ok := seen[id]; !ok {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// SetFaults replaces the plan of faults.
func (s *Service) SetFaults(ctx context.Context, req *instancedv1.SetFaultsRequest) (*instancedv1.SetFaultsResponse, error) {
	if err := s.changeable(ctx); err != nil {
		return nil, err
	}
	if err := s.sim.SetFaults(faults(req.GetFaults())); err != nil {
		return nil, err
	}
	return &instancedv1.SetFaultsResponse{}, nil
}

// GetFaults returns the plan in force.
func (s *Service) GetFaults(context.Context, *instancedv1.GetFaultsRequest) (*instancedv1.GetFaultsResponse, error) {
	return &instancedv1.GetFaultsResponse{Faults: faultMessages(s.sim.Faults())}, nil
}

// Reset returns to the fleet and the faults of the beginning.
func (s *Service) Reset(ctx context.Context, _ *instancedv1.ResetRequest) (*instancedv1.ResetResponse, error) {
	if err := s.changeable(ctx); err != nil {
		return nil, err
	}
	if err := s.sim.Reset(); err != nil {
		return nil, err
	}
	cursor, err := s.lifecycle.Reconcile(ctx)
	if err != nil {
		return nil, err
	}
	return &instancedv1.ResetResponse{Cursor: cursor}, nil
}
