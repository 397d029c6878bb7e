package ec2query

import (
	"context"
	"slices"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// maxIDs is how many instances a request may name.
const maxIDs = lifecycle.MaxInstanceIDs

// action reads its parameters and returns the response.
type action func(d *Server, ctx context.Context, c *call) (reply, error)

// actions work with every backend; simulated, which change more than states, only with the
// simulator.
var (
	actions = map[string]action{
		"StartInstances":         (*Server).startInstances,
		"StopInstances":          (*Server).stopInstances,
		"RebootInstances":        (*Server).rebootInstances,
		"TerminateInstances":     (*Server).terminateInstances,
		"DescribeInstances":      (*Server).describeInstances,
		"DescribeInstanceStatus": (*Server).describeInstanceStatus,
	}
	simulated = map[string]action{
		"RunInstances":              (*Server).runInstances,
		"CreateTags":                (*Server).createTags,
		"DeleteTags":                (*Server).deleteTags,
		"DescribeTags":              (*Server).describeTags,
		"ModifyInstanceAttribute":   (*Server).modifyInstanceAttribute,
		"DescribeInstanceAttribute": (*Server).describeInstanceAttribute,
	}
)

// action returns the action with a name; nil if there is none.
func (s *Server) action(name string) action {
	if do := actions[name]; do != nil || s.simulator == nil {
		return do
	}
	return simulated[name]
}

// dispatch calls the action of a request.
func (s *Server) dispatch(ctx context.Context, c *call) (reply, error) {
	if c.action == "" {
		return nil, errMissing("Action")
	}
	do := s.action(c.action)
	if do == nil {
		return nil, errInvalid(codeInvalidAction, "The action %s is not valid for this web service.", clip(c.action))
	}
	c.version = c.args.text("Version")
	switch {
	case c.version == "":
		return nil, errMissing("Version")
	case !slices.Contains(versions, c.version):
		return nil, errInvalid("NoSuchVersion", "The requested version (%s) of service AmazonEC2 does not exist", clip(c.version))
	}
	return do(s, ctx, c)
}

func (s *Server) startInstances(ctx context.Context, c *call) (reply, error) {
	return s.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbStart,
		AdditionalInfo: c.args.text("AdditionalInfo"),
	})
}

func (s *Server) stopInstances(ctx context.Context, c *call) (reply, error) {
	return s.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbStop,
		Hibernate:      c.args.on("Hibernate"),
		Force:          c.args.on("Force"),
		SkipOSShutdown: c.args.on("SkipOsShutdown"),
	})
}

func (s *Server) terminateInstances(ctx context.Context, c *call) (reply, error) {
	return s.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbTerminate,
		Force:          c.args.on("Force"),
		SkipOSShutdown: c.args.on("SkipOsShutdown"),
	})
}

func (s *Server) rebootInstances(ctx context.Context, c *call) (reply, error) {
	if _, err := s.command(ctx, c, lifecycle.CommandRequest{Verb: instance.VerbReboot}); err != nil {
		return nil, err
	}
	return &returnReply{Return: true}, nil
}

// change carries out a command that changes states.
func (s *Server) change(ctx context.Context, c *call, req lifecycle.CommandRequest) (reply, error) {
	changes, err := s.command(ctx, c, req)
	if err != nil {
		return nil, err
	}
	answer := &changesReply{}
	answer.Instances.Items = make([]changeItem, len(changes))
	for i, change := range changes {
		answer.Instances.Items[i] = changeItem{ID: change.ID, Current: stateOf(change.Current), Previous: stateOf(change.Previous)}
	}
	return answer, nil
}

// command reads the parameters that the four commands have in common, and carries the command
// out once, however many attempts an SDK makes.
func (s *Server) command(ctx context.Context, c *call, req lifecycle.CommandRequest) ([]instance.StateChange, error) {
	req.InstanceIDs = c.args.instanceIDs()
	req.DryRun = c.args.on("DryRun")
	c.ids = len(req.InstanceIDs)
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if len(req.InstanceIDs) == 0 {
		return nil, errInvalid(codeInvalidCombination, "No instances specified")
	}
	if c.invocation == nil {
		response, err := s.lifecycle.Command(ctx, c.caller, req)
		return response.Changes, err
	}
	return s.dedup.once(ctx, c.caller.Principal, *c.invocation, func() ([]instance.StateChange, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.deadline)
		defer cancel()
		response, err := s.lifecycle.Command(ctx, c.caller, req)
		return response.Changes, err
	})
}
