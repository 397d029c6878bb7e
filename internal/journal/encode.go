package journal

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/instanced/instanced/internal/instance"
)

// The messages that are written with every change are encoded by hand, straight
// from the vocabulary: it takes one pass and no allocation. The numbers are those
// of instanced.storage.v1; tests hold them and its generated code together.
// Enumerations have the same numbers in both.

// appendChange appends one of the changes of a LogRecord.
func appendChange(b []byte, c *instance.Change) []byte {
	b, start := open(b, 4)
	b = appendVarint(b, 1, uint64(c.Type))
	switch {
	case c.Before != nil && c.After != nil:
		b = appendStep(b, 9, c.Before, c.After)
	case c.Before != nil:
		b = appendInstance(b, 2, c.Before)
	case c.After != nil:
		b = appendInstance(b, 3, c.After)
	}
	b = appendCause(b, 4, c.Cause)
	b = appendVarint(b, 5, uint64(c.Source))
	b = appendTime(b, 6, c.OccurredAt)
	b = appendTime(b, 7, c.ObservedAt)
	b = appendBool(b, 8, c.Inferred)
	return shut(b, start)
}

// appendHeader appends the fields of a LogRecord beside its changes. They may
// follow the changes, as fields of a message have no order.
func appendHeader(b []byte, epoch uint64, recordedAt time.Time, preceding uint64) []byte {
	b = appendFixed64(b, 1, epoch)
	b = appendTime(b, 2, recordedAt)
	return appendVarint(b, 3, preceding)
}

// appendInstanceRecord appends an InstanceRecord.
func appendInstanceRecord(b []byte, r *Record) []byte {
	if r.Previous != nil {
		b = appendStep(b, 9, r.Previous, r.Instance)
	} else {
		b = appendInstance(b, 1, r.Instance)
	}
	b = appendCause(b, 3, r.Cause)
	b = appendVarint(b, 4, uint64(r.Source))
	b = appendTime(b, 5, r.ChangedAt)
	b = appendFixed64(b, 6, r.Position.Epoch)
	b = appendVarint(b, 7, r.Position.Seq)
	return appendVarint(b, 8, uint64(r.Index))
}

func appendStep(b []byte, field protowire.Number, before, after *instance.Instance) []byte {
	b, start := open(b, field)
	b = appendInstance(b, 1, after)
	rest, same := leaveOut(before, after)
	b = appendWithoutNames(b, 2, &rest, usualNames(before).without(same))
	b = appendVarint(b, 3, uint64(same))
	return shut(b, start)
}

func appendInstance(b []byte, field protowire.Number, i *instance.Instance) []byte {
	return appendWithoutNames(b, field, i, usualNames(i))
}

// appendWithoutNames appends an instance without the host names that are the usual ones.
func appendWithoutNames(b []byte, field protowire.Number, i *instance.Instance, usual names) []byte {
	b, start := open(b, field)
	b = appendString(b, 1, string(i.ID))
	b = appendString(b, 2, i.AccountID)
	b = appendString(b, 3, i.Region)
	b = appendString(b, 4, i.AvailabilityZone)
	b = appendString(b, 5, i.Type)
	b = appendVarint(b, 6, uint64(i.State))
	b = appendReason(b, 7, i.StateReason)
	b = appendString(b, 8, i.StateTransitionReason)
	b = appendTime(b, 9, i.LaunchTime)
	b = appendString(b, 10, i.PrivateIPAddress)
	b = appendString(b, 11, i.PublicIPAddress)
	b = appendString(b, 12, i.Tenancy)
	b = appendString(b, 13, i.RootDeviceType)
	b = appendString(b, 14, i.Lifecycle)
	for key, value := range i.Tags {
		var entry int
		b, entry = open(b, 15)
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), key)
		b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), value)
		b = shut(b, entry)
	}
	if i.Simulator != nil {
		b = appendSimulator(b, 16, i.Simulator)
	}
	image, digits := packImageID(i.ImageID)
	b = appendString(b, 17, image)
	b = appendVarint(b, 18, uint64(i.AMILaunchIndex))
	if usual&privateName == 0 {
		b = appendString(b, 19, i.PrivateDNSName)
	}
	if usual&publicName == 0 {
		b = appendString(b, 20, i.PublicDNSName)
	}
	b = appendVarint(b, 21, uint64(usual))
	if digits != 0 {
		b = appendFixed64(b, 22, digits)
	}
	return shut(b, start)
}

// imagePrefix begins all ids of images since 2018; 16 digits follow.
const imagePrefix = "ami-0"

// packImageID returns the digits of the id of an image that is of the usual form, or the id.
func packImageID(id string) (other string, digits uint64) {
	hex, ok := strings.CutPrefix(id, imagePrefix)
	if !ok || len(hex) != 16 {
		return id, 0
	}
	for n := range len(hex) {
		digit := value(hex[n])
		if digit < 0 {
			return id, 0
		}
		digits = digits<<4 | uint64(digit)
	}
	if digits == 0 {
		return id, 0
	}
	return "", digits
}

func unpackImageID(digits uint64) string { return fmt.Sprintf(imagePrefix+"%016x", digits) }

func appendSimulator(b []byte, field protowire.Number, s *instance.SimulatorAttributes) []byte {
	b, start := open(b, field)
	b = appendBool(b, 1, s.DisableAPIStop)
	b = appendBool(b, 2, s.DisableAPITermination)
	b = appendBool(b, 3, s.HibernationConfigured)
	b = appendBool(b, 4, s.Hibernated)
	b = appendBool(b, 5, s.MemoryLost)
	b = appendString(b, 6, s.CPUCredits)
	b = appendVarint(b, 7, uint64(s.BilledSeconds))
	b = appendBool(b, 8, s.EverRunning)
	b = appendVarint(b, 9, uint64(s.NextState))
	b = appendTime(b, 10, s.NextAt)
	b = appendReason(b, 11, s.NextReason)
	b = appendVarint(b, 12, s.Transitions)
	b = appendTime(b, 13, s.BilledFrom)
	if s.Launched != nil {
		b = appendLaunched(b, 14, s.Launched)
	}
	b = appendString(b, 15, s.SpotInstanceType)
	b = appendString(b, 16, s.InterruptionBehavior)
	b = appendVarint(b, 17, s.LaunchIndex)
	return shut(b, start)
}

func appendLaunched(b []byte, field protowire.Number, l *instance.Launched) []byte {
	b, start := open(b, field)
	b = appendString(b, 1, l.ReservationID)
	b = appendString(b, 2, l.ImageID)
	b = appendString(b, 3, l.ClientToken)
	b = appendString(b, 4, l.Digest)
	return shut(b, start)
}

func appendReason(b []byte, field protowire.Number, r *instance.StateReason) []byte {
	if r == nil {
		return b
	}
	b, start := open(b, field)
	b = appendString(b, 1, r.Code)
	b = appendString(b, 2, r.Message)
	return shut(b, start)
}

func appendCause(b []byte, field protowire.Number, c instance.Cause) []byte {
	if c.External() {
		return b
	}
	b, start := open(b, field)
	b = appendString(b, 1, c.Principal)
	b = appendString(b, 2, string(c.Verb))
	b = appendString(b, 3, c.RequestID)
	b = appendString(b, 4, c.ClientToken)
	return shut(b, start)
}

// open begins a nested message, and shut ends it: it puts the length, which is
// known only then, before what was appended since.
func open(b []byte, field protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return b, len(b)
}

func shut(b []byte, start int) []byte {
	size := len(b) - start
	var room [10]byte
	b = append(b, room[:protowire.SizeVarint(uint64(size))]...)
	copy(b[len(b)-size:], b[start:])
	protowire.AppendVarint(b[:start], uint64(size))
	return b
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendVarint(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, n)
}

func appendFixed64(b []byte, field protowire.Number, n uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, n)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendVarint(b, field, 1)
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	return appendVarint(b, field, uint64(nanoseconds(t)))
}

// nanoseconds is how a time is stored: since 1970, 0 for a time that is not known.
// Times outside of the years 1678 to 2261 do not fit and are stored as not known.
func nanoseconds(t time.Time) int64 {
	if year := t.Year(); year < 1678 || year > 2261 {
		return 0
	}
	return t.UnixNano()
}

func fromNanoseconds(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
