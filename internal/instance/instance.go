package instance

import (
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ID is the id of an instance: "i-" and 8 or 17 lower-case hex digits.
type ID string

// ParseID checks the form of an instance id. EC2's documentation uses ids that
// EC2 itself would call malformed (17 digits that do not begin with 0); they are
// accepted here, and are simply not found. The error is of [KindInvalid] with
// EC2's code and text: InvalidInstanceID.Malformed, or MissingParameter for "".
func ParseID(s string) (ID, error) {
	if s == "" {
		return "", &Error{Kind: KindInvalid, Code: CodeMissingParameter, Message: "The request must contain the parameter InstanceId"}
	}
	digits := len(s) - len("i-")
	if (digits != 8 && digits != 17) || s[:2] != "i-" || !isLowerHex(s[2:]) {
		return "", &Error{
			Kind:    KindInvalid,
			Code:    CodeMalformedID,
			Message: fmt.Sprintf("Invalid id: \"%s\"", clip(s, 64)),
		}
	}
	return ID(s), nil
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip shortens a caller's input for an error message, and drops unprintable characters.
func clip(s string, maxBytes int) string {
	more := ""
	if len(s) > maxBytes {
		end := maxBytes
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		s, more = s[:end], "…"
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return utf8.RuneError
		}
		return c
	}, s) + more
}

// Instance is an instance as EC2's DescribeInstances describes it.
type Instance struct {
	ID               ID
	AccountID        string
	Region           string
	AvailabilityZone string
	Type             string
	State            State

	// StateReason is why the instance is in its state; nil if EC2 gives no reason, as for a
	// running instance.
	StateReason *StateReason
	// StateTransitionReason is EC2's text about the last requested change of state, such as
	// "User initiated (2019-10-12 20:35:03 GMT)". Empty after the next start.
	StateTransitionReason string
	// LaunchTime is when the instance was launched or last started, in UTC.
	LaunchTime time.Time

	// ImageID is the AMI that it was launched from, such as ami-0abcdef1234567890. It is
	// empty only in history recorded before this field existed.
	ImageID string
	// AMILaunchIndex is the index among the instances launched together, from 0.
	AMILaunchIndex int32

	PrivateIPAddress string
	PublicIPAddress  string
	// PrivateDNSName and PublicDNSName are the host names that EC2 gives it. The private
	// one is kept while it is stopped. The public one comes and goes with the public
	// address, and is empty in a VPC without DNS hostnames.
	PrivateDNSName string
	PublicDNSName  string
	// Tenancy is "default", "dedicated" or "host".
	Tenancy string
	// RootDeviceType is "ebs" or "instance-store".
	RootDeviceType string
	// Lifecycle is "spot" for a Spot Instance and empty for an On-Demand one.
	Lifecycle string
	Tags      map[string]string

	// Simulator is set for instances of the simulator only.
	Simulator *SimulatorAttributes
}

// StateReason is EC2's reason for the last state change.
type StateReason struct {
	// Code is one of EC2's codes, such as Client.UserInitiatedShutdown.
	Code string
	// Message is EC2's text, such as
	// "Client.UserInitiatedShutdown: User initiated shutdown".
	Message string
}

// SimulatorAttributes are attributes that the simulator adds to the ones of EC2's
// DescribeInstances, and its state of the instance, which it needs after a restart.
type SimulatorAttributes struct {
	DisableAPIStop        bool
	DisableAPITermination bool
	HibernationConfigured bool
	// Hibernated is whether the last stop kept the contents of RAM.
	Hibernated bool
	// MemoryLost is whether the contents of RAM were lost at the last stop.
	MemoryLost bool
	// CPUCredits is "standard" or "unlimited"; empty for types without credits.
	CPUCredits string
	// SpotInstanceType is "one-time" or "persistent", the type of the Spot request of a Spot
	// Instance, and InterruptionBehavior "terminate", "stop" or "hibernate": what an
	// interruption does to it. Empty for other instances. A Spot Instance of an earlier
	// version, for which both are empty, is persistent and stops.
	SpotInstanceType     string
	InterruptionBehavior string
	// BilledSeconds is the usage charged up to the last change of state: at least
	// 60 seconds for each start, then by the second, nothing while stopped.
	BilledSeconds int64
	// BilledFrom is the start of the usage that is not in BilledSeconds yet; zero while
	// nothing is charged. See [SimulatorAttributes.Billed].
	BilledFrom time.Time
	// EverRunning is whether the instance has been running since its launch.
	EverRunning bool
	// Launched is the launch that created it; nil if it was created otherwise. It is never
	// modified.
	Launched *Launched
	// LaunchIndex is where earlier versions kept [Instance.AMILaunchIndex].
	LaunchIndex uint64

	// The next transition. NextState is [StateUnspecified] if the instance is in a stable
	// state, or stuck in a transitional one. NextAt is also when a terminated instance is
	// removed, and when the Spot request of a Spot Instance that a user has stopped allows
	// the next start.
	NextState  State
	NextAt     time.Time
	NextReason *StateReason
	// Transitions counts the changes of state so far; with the seed it determines later
	// delays.
	Transitions uint64
}

// Launched is what the simulator keeps of the launch of an instance.
type Launched struct {
	// ReservationID is shared by all instances of one launch.
	ReservationID string
	// ImageID is where earlier versions kept [Instance.ImageID].
	ImageID string
	// ClientToken is that of the launch; empty for none. Digest identifies the request.
	ClientToken string
	Digest      string
}

// Clone returns a deep copy that the caller may modify.
func (i *Instance) Clone() *Instance {
	if i == nil {
		return nil
	}
	c := *i
	c.Tags = maps.Clone(i.Tags)
	if i.StateReason != nil {
		c.StateReason = new(*i.StateReason)
	}
	if i.Simulator != nil {
		c.Simulator = new(*i.Simulator)
		if i.Simulator.NextReason != nil {
			c.Simulator.NextReason = new(*i.Simulator.NextReason)
		}
		if i.Simulator.Launched != nil {
			c.Simulator.Launched = new(*i.Simulator.Launched)
		}
	}
	return &c
}

// Equal reports whether all attributes of two instances are equal. Times are compared as
// instants, and an empty map of tags equals a nil one.
func (i *Instance) Equal(o *Instance) bool {
	if i == nil || o == nil || i == o {
		return i == o
	}
	return i.ID == o.ID &&
		i.AccountID == o.AccountID &&
		i.Region == o.Region &&
		i.AvailabilityZone == o.AvailabilityZone &&
		i.Type == o.Type &&
		i.State == o.State &&
		i.StateReason.equal(o.StateReason) &&
		i.StateTransitionReason == o.StateTransitionReason &&
		i.LaunchTime.Equal(o.LaunchTime) &&
		i.ImageID == o.ImageID &&
		i.AMILaunchIndex == o.AMILaunchIndex &&
		i.PrivateIPAddress == o.PrivateIPAddress &&
		i.PublicIPAddress == o.PublicIPAddress &&
		i.PrivateDNSName == o.PrivateDNSName &&
		i.PublicDNSName == o.PublicDNSName &&
		i.Tenancy == o.Tenancy &&
		i.RootDeviceType == o.RootDeviceType &&
		i.Lifecycle == o.Lifecycle &&
		maps.Equal(i.Tags, o.Tags) &&
		i.Simulator.equal(o.Simulator)
}

func (r *StateReason) equal(o *StateReason) bool {
	if r == nil || o == nil {
		return r == o
	}
	return *r == *o
}

func (s *SimulatorAttributes) equal(o *SimulatorAttributes) bool {
	if s == nil || o == nil {
		return s == o
	}
	a, b := *s, *o
	same := a.NextAt.Equal(b.NextAt) && a.BilledFrom.Equal(b.BilledFrom) && a.NextReason.equal(b.NextReason) && a.Launched.equal(b.Launched)
	a.NextAt, a.BilledFrom, a.NextReason, a.Launched = time.Time{}, time.Time{}, nil, nil
	b.NextAt, b.BilledFrom, b.NextReason, b.Launched = time.Time{}, time.Time{}, nil, nil
	return same && a == b
}

func (l *Launched) equal(o *Launched) bool {
	if l == nil || o == nil {
		return l == o
	}
	return *l == *o
}
