package codec

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/instanced/instanced/internal/instance"
)

// Record is an instance as the checkpoint stores it.
type Record struct {
	Instance, Previous *instance.Instance
	Cause              instance.Cause
	Source             instance.Source
	ChangedAt          time.Time
	// Epoch, Seq and Index identify the event of the last change.
	Epoch, Seq uint64
	Index      uint32
}

// AppendChange appends one of the changes of a LogRecord.
func AppendChange(b []byte, c *instance.Change) []byte {
	b, start := open(b, changesField)
	b = appendVarint(b, 1, uint64(c.Type))
	switch {
	case c.Before != nil && c.After != nil:
		b = appendStep(b, 9, c.Before, c.After)
	case c.Before != nil:
		b = appendInstance(b, 2, c.Before, 0)
	case c.After != nil:
		b = appendInstance(b, 3, c.After, 0)
	}
	b = appendCause(b, 4, c.Cause)
	b = appendVarint(b, 5, uint64(c.Source))
	b = appendTime(b, 6, c.OccurredAt)
	b = appendTime(b, 7, c.ObservedAt)
	b = appendBool(b, 8, c.Inferred)
	return shut(b, start)
}

// AppendHeader appends the fields of a LogRecord other than its changes. They may follow
// the changes, since the fields of a message have no order.
func AppendHeader(b []byte, epoch uint64, recordedAt time.Time, preceding uint64) []byte {
	b = appendFixed64(b, 1, epoch)
	b = appendTime(b, 2, recordedAt)
	return appendVarint(b, 3, preceding)
}

// AppendRecord appends an InstanceRecord.
func AppendRecord(b []byte, r *Record) []byte {
	if r.Previous != nil {
		b = appendStep(b, 9, r.Previous, r.Instance)
	} else {
		b = appendInstance(b, 1, r.Instance, 0)
	}
	b = appendCause(b, 3, r.Cause)
	b = appendVarint(b, 4, uint64(r.Source))
	b = appendTime(b, 5, r.ChangedAt)
	b = appendFixed64(b, 6, r.Epoch)
	b = appendVarint(b, 7, r.Seq)
	return appendVarint(b, 8, uint64(r.Index))
}

// appendStep appends an instance before and after a change: after in full, before without
// the fields that have the same value in both.
func appendStep(b []byte, field protowire.Number, before, after *instance.Instance) []byte {
	b, start := open(b, field)
	b = appendInstance(b, 1, after, 0)
	same := Diff(before, after)
	b = appendInstance(b, 2, before, same)
	b = appendVarint(b, 3, uint64(same))
	return shut(b, start)
}

// appendInstance appends an instance without some of its fields.
func appendInstance(b []byte, field protowire.Number, i *instance.Instance, without Fields) []byte {
	b, start := open(b, field)
	names := derivedNames(i) &^ without
	for n := range table {
		if f := &table[n]; !(without | names).has(f.number) {
			b = f.append(b, f.number, i)
		}
	}
	b = appendVarint(b, derivedNamesField, uint64(names>>privateNameField))
	if _, digits := packImageID(i.ImageID); digits != 0 && !without.has(imageField) {
		b = appendFixed64(b, imageDigitsField, digits)
	}
	return shut(b, start)
}

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
