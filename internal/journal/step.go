package journal

import (
	"maps"

	"github.com/instanced/instanced/internal/instance"
)

// fields are some of the fields of a stored Instance: bit n stands for number n.
type fields uint64

// leaveOut returns an instance without what it has in common with another one, and
// which fields those are.
func leaveOut(i, common *instance.Instance) (rest instance.Instance, same fields) {
	rest = *i
	same |= leave(&rest.ID, common.ID, 1)
	same |= leave(&rest.AccountID, common.AccountID, 2)
	same |= leave(&rest.Region, common.Region, 3)
	same |= leave(&rest.AvailabilityZone, common.AvailabilityZone, 4)
	same |= leave(&rest.Type, common.Type, 5)
	same |= leave(&rest.State, common.State, 6)
	same |= leavePointer(&rest.StateReason, common.StateReason, 7)
	same |= leave(&rest.StateTransitionReason, common.StateTransitionReason, 8)
	same |= leave(&rest.LaunchTime, common.LaunchTime, 9)
	same |= leave(&rest.PrivateIPAddress, common.PrivateIPAddress, 10)
	same |= leave(&rest.PublicIPAddress, common.PublicIPAddress, 11)
	same |= leave(&rest.Tenancy, common.Tenancy, 12)
	same |= leave(&rest.RootDeviceType, common.RootDeviceType, 13)
	same |= leave(&rest.Lifecycle, common.Lifecycle, 14)
	if maps.Equal(rest.Tags, common.Tags) {
		rest.Tags = nil
		same |= 1 << 15
	}
	same |= leavePointer(&rest.Simulator, common.Simulator, 16)
	same |= leave(&rest.ImageID, common.ImageID, 17)
	same |= leave(&rest.AMILaunchIndex, common.AMILaunchIndex, 18)
	same |= leave(&rest.PrivateDNSName, common.PrivateDNSName, 19)
	same |= leave(&rest.PublicDNSName, common.PublicDNSName, 20)
	return rest, same
}

func leave[T comparable](field *T, common T, number int) fields {
	if *field != common {
		return 0
	}
	var none T
	*field = none
	return 1 << number
}

func leavePointer[T comparable](field **T, common *T, number int) fields {
	if *field != common && (*field == nil || common == nil || **field != *common) {
		return 0
	}
	*field = nil
	return 1 << number
}

// restoreAll gives an instance what leaveOut left out. The two share it: neither is ever
// modified.
func restoreAll(i, common *instance.Instance, same fields) {
	restore(&i.ID, common.ID, same, 1)
	restore(&i.AccountID, common.AccountID, same, 2)
	restore(&i.Region, common.Region, same, 3)
	restore(&i.AvailabilityZone, common.AvailabilityZone, same, 4)
	restore(&i.Type, common.Type, same, 5)
	restore(&i.State, common.State, same, 6)
	restore(&i.StateReason, common.StateReason, same, 7)
	restore(&i.StateTransitionReason, common.StateTransitionReason, same, 8)
	restore(&i.LaunchTime, common.LaunchTime, same, 9)
	restore(&i.PrivateIPAddress, common.PrivateIPAddress, same, 10)
	restore(&i.PublicIPAddress, common.PublicIPAddress, same, 11)
	restore(&i.Tenancy, common.Tenancy, same, 12)
	restore(&i.RootDeviceType, common.RootDeviceType, same, 13)
	restore(&i.Lifecycle, common.Lifecycle, same, 14)
	restore(&i.Tags, common.Tags, same, 15)
	restore(&i.Simulator, common.Simulator, same, 16)
	restore(&i.ImageID, common.ImageID, same, 17)
	restore(&i.AMILaunchIndex, common.AMILaunchIndex, same, 18)
	restore(&i.PrivateDNSName, common.PrivateDNSName, same, 19)
	restore(&i.PublicDNSName, common.PublicDNSName, same, 20)
}

func restore[T any](field *T, common T, same fields, number int) {
	if same&(1<<number) != 0 {
		*field = common
	}
}

// names are some of the two host names of a stored Instance.
type names uint32

const (
	privateName names = 1 << iota // field 19
	publicName                    // field 20
)

// usualNames returns the host names of an instance that are the usual ones.
func usualNames(i *instance.Instance) (usual names) {
	if i.HasUsualPrivateDNSName() {
		usual |= privateName
	}
	if i.HasUsualPublicDNSName() {
		usual |= publicName
	}
	return usual
}

// without returns the names that are not among some fields.
func (n names) without(same fields) names { return n &^ names(same>>19) }

// restoreNames gives an instance the host names that were left out since they are the usual ones.
func restoreNames(i *instance.Instance, usual names) {
	if usual&privateName != 0 {
		i.PrivateDNSName = i.UsualPrivateDNSName()
	}
	if usual&publicName != 0 {
		i.PublicDNSName = i.UsualPublicDNSName()
	}
}
