package ec2

import (
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/instanced/instanced/internal/instance"
)

// stateOf converts a state, by its code.
func stateOf(s *types.InstanceState) (instance.State, error) {
	switch {
	case s == nil:
		return instance.StateUnspecified, errors.New("it has no state")
	case s.Code == nil:
		return instance.StateUnspecified, fmt.Errorf("its state %q has no code", s.Name)
	}
	state, err := instance.StateFromCode(*s.Code)
	if err != nil {
		return instance.StateUnspecified, fmt.Errorf("its state is %d (%q), which this version does not know", *s.Code, s.Name)
	}
	return state, nil
}

// instanceOf converts an instance of a reservation.
func (c *client) instanceOf(r *types.Reservation, i *types.Instance) (*instance.Instance, error) {
	id, err := instance.ParseID(aws.ToString(i.InstanceId))
	if err != nil {
		return nil, err
	}
	state, err := stateOf(i.State)
	if err != nil {
		return nil, err
	}
	inst := &instance.Instance{
		ID:                    id,
		AccountID:             aws.ToString(r.OwnerId),
		Region:                c.region,
		Type:                  string(i.InstanceType),
		State:                 state,
		StateTransitionReason: aws.ToString(i.StateTransitionReason),
		ImageID:               aws.ToString(i.ImageId),
		AMILaunchIndex:        aws.ToInt32(i.AmiLaunchIndex),
		PrivateIPAddress:      aws.ToString(i.PrivateIpAddress),
		PublicIPAddress:       aws.ToString(i.PublicIpAddress),
		PrivateDNSName:        aws.ToString(i.PrivateDnsName),
		PublicDNSName:         aws.ToString(i.PublicDnsName),
		RootDeviceType:        string(i.RootDeviceType),
		Lifecycle:             string(i.InstanceLifecycle),
	}
	if i.StateReason != nil {
		inst.StateReason = &instance.StateReason{Code: aws.ToString(i.StateReason.Code), Message: aws.ToString(i.StateReason.Message)}
	}
	if i.LaunchTime != nil {
		inst.LaunchTime = i.LaunchTime.UTC()
	}
	if i.Placement != nil {
		inst.AvailabilityZone = aws.ToString(i.Placement.AvailabilityZone)
		inst.Tenancy = string(i.Placement.Tenancy)
	}
	if len(i.Tags) > 0 {
		inst.Tags = make(map[string]string, len(i.Tags))
		for _, tag := range i.Tags {
			inst.Tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
		}
	}
	return inst, nil
}
