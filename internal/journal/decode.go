package journal

import (
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/instanced/instanced/internal/instance"
)

// header is what a batch says beside its changes.
type header struct {
	epoch      uint64
	recordedAt time.Time
	// preceding is the bytes of all batches before this one.
	preceding uint64
}

// decodeHeader reads the header of a LogRecord, and finds its changes if they are packed.
func decodeHeader(value []byte) (h header, packed []byte, err error) {
	for len(value) > 0 {
		field, kind, n := protowire.ConsumeTag(value)
		if n < 0 {
			return header{}, nil, protowire.ParseError(n)
		}
		value = value[n:]
		var number uint64
		switch {
		case field == 1 && kind == protowire.Fixed64Type:
			h.epoch, n = protowire.ConsumeFixed64(value)
		case field == 2 && kind == protowire.VarintType:
			number, n = protowire.ConsumeVarint(value)
			h.recordedAt = fromNanoseconds(int64(number))
		case field == 3 && kind == protowire.VarintType:
			h.preceding, n = protowire.ConsumeVarint(value)
		case field == packedChangesField && kind == protowire.BytesType:
			packed, n = protowire.ConsumeBytes(value)
		default:
			n = protowire.ConsumeFieldValue(field, kind, value)
		}
		if n < 0 {
			return header{}, nil, protowire.ParseError(n)
		}
		value = value[n:]
	}
	return h, packed, nil
}

// The messages that are written by hand are read by hand too: a reader that has fallen
// behind reads little else. A field of a number that is not known is stepped over.

// decodeBatch reads a LogRecord, the value of the log's key with that number.
func decodeBatch(seq uint64, value []byte) (*Batch, header, error) {
	h, changes, err := unpack(value)
	if err != nil {
		return nil, header{}, err
	}
	b, err := decodeChanges(seq, h, changes)
	return b, h, err
}

// decodeChanges reads the changes of a LogRecord whose header was read and that was
// unpacked.
func decodeChanges(seq uint64, h header, message []byte) (*Batch, error) {
	var changes [][]byte
	for rest := message; len(rest) > 0; {
		field, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		rest = rest[n:]
		size := protowire.ConsumeFieldValue(field, kind, rest)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		if field == changesField && kind == protowire.BytesType {
			change, _ := protowire.ConsumeBytes(rest)
			changes = append(changes, change)
		}
		rest = rest[size:]
	}
	b := newBatch(Position{Epoch: h.epoch, Seq: seq}, len(changes))
	b.RecordedAt, b.Bytes = h.recordedAt, len(message)
	for _, wire := range changes {
		// Each change has a string of its own: what is known of an instance holds the
		// last change of it in memory, and is not to hold a whole batch.
		f := newMessage(wire)
		c := readChange(&f)
		if f.err != nil {
			return nil, f.err
		}
		if c.Before == nil && c.After == nil {
			return nil, errors.New("a change without an instance")
		}
		b.add(newEntry(c))
	}
	return b, nil
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
			c.OccurredAt = fromNanoseconds(int64(f.scalar))
		case 7:
			c.ObservedAt = fromNanoseconds(int64(f.scalar))
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

// decodeInstanceRecord reads an InstanceRecord.
func decodeInstanceRecord(value []byte) (*Record, error) {
	r := &Record{memo: new(memo[[]byte])}
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
			r.ChangedAt = fromNanoseconds(int64(f.scalar))
		case 6:
			r.Position.Epoch = f.scalar
		case 7:
			r.Position.Seq = f.scalar
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
		return nil, f.err
	}
	if r.Instance == nil {
		return nil, errors.New("it has no instance")
	}
	return r, nil
}

// step is an instance before and after a change. Format 1 does not know it: there both
// are written in full.
type step struct{ before, after *instance.Instance }

func readStep(f *message) *step {
	s := &step{}
	var same fields
	var before withoutNames
	for f.next() {
		switch f.number {
		case 1:
			s.after = nestedIn(f, readInstance)
		case 2:
			before = nestedIn(f, readWithoutNames)
			s.before = before.instance
		case 3:
			same = fields(f.scalar)
		}
	}
	if s.before != nil && s.after != nil {
		restoreAll(s.before, s.after, same)
		restoreNames(s.before, before.usual)
	}
	return s
}

func readInstance(f *message) *instance.Instance {
	w := readWithoutNames(f)
	restoreNames(w.instance, w.usual)
	return w.instance
}

// withoutNames is an instance whose usual host names are not restored yet.
type withoutNames struct {
	instance *instance.Instance
	usual    names
}

func readWithoutNames(f *message) withoutNames {
	i := &instance.Instance{}
	var usual names
	for f.next() {
		switch f.number {
		case 1:
			i.ID = instance.ID(f.string())
		case 2:
			i.AccountID = f.string()
		case 3:
			i.Region = f.string()
		case 4:
			i.AvailabilityZone = f.string()
		case 5:
			i.Type = f.string()
		case 6:
			i.State = instance.State(f.scalar)
		case 7:
			i.StateReason = nestedIn(f, readReason)
		case 8:
			i.StateTransitionReason = f.string()
		case 9:
			i.LaunchTime = fromNanoseconds(int64(f.scalar))
		case 10:
			i.PrivateIPAddress = f.string()
		case 11:
			i.PublicIPAddress = f.string()
		case 12:
			i.Tenancy = f.string()
		case 13:
			i.RootDeviceType = f.string()
		case 14:
			i.Lifecycle = f.string()
		case 15:
			if i.Tags == nil {
				i.Tags = map[string]string{}
			}
			tag := nestedIn(f, readTag)
			i.Tags[tag.key] = tag.value
		case 16:
			i.Simulator = nestedIn(f, readSimulator)
		case 17:
			i.ImageID = f.string()
		case 18:
			i.AMILaunchIndex = int32(f.scalar)
		case 19:
			i.PrivateDNSName = f.string()
		case 20:
			i.PublicDNSName = f.string()
		case 21:
			usual = names(f.scalar)
		case 22:
			i.ImageID = unpackImageID(f.scalar)
		}
	}
	return withoutNames{i, usual}
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
			s.NextAt = fromNanoseconds(int64(f.scalar))
		case 11:
			s.NextReason = nestedIn(f, readReason)
		case 12:
			s.Transitions = f.scalar
		case 13:
			s.BilledFrom = fromNanoseconds(int64(f.scalar))
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
