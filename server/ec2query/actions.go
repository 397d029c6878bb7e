package ec2query

import (
	"context"
	"slices"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// maxIDs is how many instances a request names.
const maxIDs = lifecycle.MaxInstanceIDs

// action reads its parameters and answers.
type action func(d *Door, ctx context.Context, c *call) (reply, error)

// actions are those of every backend, those that change more than states are the simulator's alone.
var (
	actions = map[string]action{
		"StartInstances":         (*Door).startInstances,
		"StopInstances":          (*Door).stopInstances,
		"RebootInstances":        (*Door).rebootInstances,
		"TerminateInstances":     (*Door).terminateInstances,
		"DescribeInstances":      (*Door).describeInstances,
		"DescribeInstanceStatus": (*Door).describeInstanceStatus,
	}
	simulated = map[string]action{
		"RunInstances":              (*Door).runInstances,
		"CreateTags":                (*Door).createTags,
		"DeleteTags":                (*Door).deleteTags,
		"DescribeTags":              (*Door).describeTags,
		"ModifyInstanceAttribute":   (*Door).modifyInstanceAttribute,
		"DescribeInstanceAttribute": (*Door).describeInstanceAttribute,
	}
)

// act carries a request out.
func (d *Door) act(ctx context.Context, c *call) (reply, error) {
	if c.action == "" {
		return nil, errMissing("Action")
	}
	do := actions[c.action]
	if do == nil && d.simulator != nil {
		do = simulated[c.action]
	}
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
	return do(d, ctx, c)
}

func (d *Door) startInstances(ctx context.Context, c *call) (reply, error) {
	return d.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbStart,
		AdditionalInfo: c.args.text("AdditionalInfo"),
	})
}

func (d *Door) stopInstances(ctx context.Context, c *call) (reply, error) {
	return d.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbStop,
		Hibernate:      c.args.on("Hibernate"),
		Force:          c.args.on("Force"),
		SkipOSShutdown: c.args.on("SkipOsShutdown"),
	})
}

func (d *Door) terminateInstances(ctx context.Context, c *call) (reply, error) {
	return d.change(ctx, c, lifecycle.CommandRequest{
		Verb:           instance.VerbTerminate,
		Force:          c.args.on("Force"),
		SkipOSShutdown: c.args.on("SkipOsShutdown"),
	})
}

func (d *Door) rebootInstances(ctx context.Context, c *call) (reply, error) {
	if _, err := d.command(ctx, c, lifecycle.CommandRequest{Verb: instance.VerbReboot}); err != nil {
		return nil, err
	}
	return &returnReply{Return: true}, nil
}

// change carries out a verb that changes states.
func (d *Door) change(ctx context.Context, c *call, req lifecycle.CommandRequest) (reply, error) {
	changes, err := d.command(ctx, c, req)
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

// command reads what the four verbs have in common, and carries one out: once, however
// often an SDK tries.
func (d *Door) command(ctx context.Context, c *call, req lifecycle.CommandRequest) ([]instance.StateChange, error) {
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
		response, err := d.lifecycle.Command(ctx, c.caller, req)
		return response.Changes, err
	}
	return d.retries.once(ctx, c.caller.Principal, *c.invocation, func() ([]instance.StateChange, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.deadline)
		defer cancel()
		response, err := d.lifecycle.Command(ctx, c.caller, req)
		return response.Changes, err
	})
}
