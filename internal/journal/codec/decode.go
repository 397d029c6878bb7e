package codec

import (
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/instanced/instanced/internal/instance"
)

// Header is a LogRecord without its changes.
type Header struct {
	Epoch      uint64
	RecordedAt time.Time
	// Preceding is the size of all earlier batches, in bytes.
	Preceding uint64
}

// DecodeHeader reads the header of a LogRecord, and its changes if they are compressed.
func DecodeHeader(value []byte) (h Header, compressed []byte, err error) {
	for len(value) > 0 {
		field, kind, n := protowire.ConsumeTag(value)
		if n < 0 {
			return Header{}, nil, protowire.ParseError(n)
		}
		value = value[n:]
		var number uint64
		switch {
		case field == 1 && kind == protowire.Fixed64Type:
			h.Epoch, n = protowire.ConsumeFixed64(value)
		case field == 2 && kind == protowire.VarintType:
			number, n = protowire.ConsumeVarint(value)
			h.RecordedAt = Time(int64(number))
		case field == 3 && kind == protowire.VarintType:
			h.Preceding, n = protowire.ConsumeVarint(value)
		case field == compressedChangesField && kind == protowire.BytesType:
			compressed, n = protowire.ConsumeBytes(value)
		default:
			n = protowire.ConsumeFieldValue(field, kind, value)
		}
		if n < 0 {
			return Header{}, nil, protowire.ParseError(n)
		}
		value = value[n:]
	}
	return h, compressed, nil
}

var (
	errNoInstance       = errors.New("it has no instance")
	errNoInstanceChange = errors.New("a change without an instance")
)

// Changes splits a decompressed LogRecord into its encoded changes.
func Changes(message []byte) (changes [][]byte, err error) {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		message = message[n:]
		size := protowire.ConsumeFieldValue(field, kind, message)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		if field == changesField && kind == protowire.BytesType {
			change, _ := protowire.ConsumeBytes(message)
			changes = append(changes, change)
		}
		message = message[size:]
	}
	return changes, nil
}

// DecodeChange reads one change. Its strings share one allocation.
func DecodeChange(wire []byte) (instance.Change, error) {
	f := newMessage(wire)
	c := readChange(&f)
	if f.err != nil {
		return instance.Change{}, f.err
	}
	if c.Before == nil && c.After == nil {
		return instance.Change{}, errNoInstanceChange
	}
	return c, nil
}

func readChange(f *message) (c instance.Change) {
	var s *step
	for f.next() {
		switch f.number {
		case 1:
			c.Type = instance.ChangeType(f.scalar)
		case 2:
			c.Before = nestedIn(f, readInstance)
		case 3:
			c.After = nestedIn(f, readInstance)
		case 4:
			c.Cause = nestedIn(f, readCause)
		case 5:
			c.Source = instance.Source(f.scalar)
		case 6:
			c.OccurredAt = Time(int64(f.scalar))
		case 7:
			c.ObservedAt = Time(int64(f.scalar))
		case 8:
			c.Inferred = f.scalar != 0
		case 9:
			s = nestedIn(f, readStep)
		}
	}
	if s != nil {
		c.Before, c.After = s.before, s.after
	}
	return c
}

// DecodeRecord reads an InstanceRecord.
func DecodeRecord(value []byte) (r Record, err error) {
	var s *step
	f := newMessage(value)
	for f.next() {
		switch f.number {
		case 1:
			r.Instance = nestedIn(&f, readInstance)
		case 2:
			r.Previous = nestedIn(&f, readInstance)
		case 3:
			r.Cause = nestedIn(&f, readCause)
		case 4:
			r.Source = instance.Source(f.scalar)
		case 5:
			r.ChangedAt = Time(int64(f.scalar))
		case 6:
			r.Epoch = f.scalar
		case 7:
			r.Seq = f.scalar
		case 8:
			r.Index = uint32(f.scalar)
		case 9:
			s = nestedIn(&f, readStep)
		}
	}
	if s != nil {
		r.Previous, r.Instance = s.before, s.after
	}
	if f.err != nil {
		return Record{}, f.err
	}
	if r.Instance == nil {
		return Record{}, errNoInstance
	}
	return r, nil
}

// step is an instance before and after a change. Format 1 has no steps: it stores both in
// full.
type step struct{ before, after *instance.Instance }

func readStep(f *message) *step {
	s := &step{}
	var same Fields
	var before partial
	for f.next() {
		switch f.number {
		case 1:
			s.after = nestedIn(f, readInstance)
		case 2:
			before = nestedIn(f, readPartial)
			s.before = before.instance
		case 3:
			same = Fields(f.scalar)
		}
	}
	if s.before != nil && s.after != nil {
		Patch(s.before, s.after, same)
		deriveNames(s.before, before.derived)
	}
	return s
}

func readInstance(f *message) *instance.Instance {
	p := readPartial(f)
	deriveNames(p.instance, p.derived)
	return p.instance
}

// partial is an instance that still lacks the host names that follow from its addresses.
type partial struct {
	instance *instance.Instance
	derived  Fields
}

func readPartial(f *message) (p partial) {
	p.instance = &instance.Instance{}
	for f.next() {
		switch {
		case int(f.number) < len(byNumber) && byNumber[f.number] != nil:
			byNumber[f.number].read(f, p.instance)
		case f.number == derivedNamesField:
			p.derived = Fields(uint32(f.scalar)) << privateNameField
		case f.number == imageDigitsField:
			p.instance.ImageID = unpackImageID(f.scalar)
		}
	}
	return p
}

type tag struct{ key, value string }

func readTag(f *message) (t tag) {
	for f.next() {
		switch f.number {
		case 1:
			t.key = f.string()
		case 2:
			t.value = f.string()
		}
	}
	return t
}

func readSimulator(f *message) *instance.SimulatorAttributes {
	s := &instance.SimulatorAttributes{}
	for f.next() {
		switch f.number {
		case 1:
			s.DisableAPIStop = f.scalar != 0
		case 2:
			s.DisableAPITermination = f.scalar != 0
		case 3:
			s.HibernationConfigured = f.scalar != 0
		case 4:
			s.Hibernated = f.scalar != 0
		case 5:
			s.MemoryLost = f.scalar != 0
		case 6:
			s.CPUCredits = f.string()
		case 7:
			s.BilledSeconds = int64(f.scalar)
		case 8:
			s.EverRunning = f.scalar != 0
		case 9:
			s.NextState = instance.State(f.scalar)
		case 10:
			s.NextAt = Time(int64(f.scalar))
		case 11:
			s.NextReason = nestedIn(f, readReason)
		case 12:
			s.Transitions = f.scalar
		case 13:
			s.BilledFrom = Time(int64(f.scalar))
		case 14:
			s.Launched = nestedIn(f, readLaunched)
		case 15:
			s.SpotInstanceType = f.string()
		case 16:
			s.InterruptionBehavior = f.string()
		case 17:
			s.LaunchIndex = f.scalar
		}
	}
	return s
}

func readLaunched(f *message) *instance.Launched {
	l := &instance.Launched{}
	for f.next() {
		switch f.number {
		case 1:
			l.ReservationID = f.string()
		case 2:
			l.ImageID = f.string()
		case 3:
			l.ClientToken = f.string()
		case 4:
			l.Digest = f.string()
		}
	}
	return l
}

func readReason(f *message) *instance.StateReason {
	r := &instance.StateReason{}
	for f.next() {
		switch f.number {
		case 1:
			r.Code = f.string()
		case 2:
			r.Message = f.string()
		}
	}
	return r
}

func readCause(f *message) (c instance.Cause) {
	for f.next() {
		switch f.number {
		case 1:
			c.Principal = f.string()
		case 2:
			c.Verb = instance.Verb(f.string())
		case 3:
			c.RequestID = f.string()
		case 4:
			c.ClientToken = f.string()
		}
	}
	return c
}
