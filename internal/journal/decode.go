package journal

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
)

// header is what a batch says beside its changes.
type header struct {
	generation uint64
	recordedAt time.Time
	// preceding is the bytes of all batches before this one.
	preceding uint64
}

// decodeHeader reads the header of a LogRecord, and steps over the changes.
func decodeHeader(value []byte) (h header, err error) {
	for len(value) > 0 {
		field, kind, n := protowire.ConsumeTag(value)
		if n < 0 {
			return header{}, protowire.ParseError(n)
		}
		value = value[n:]
		var number uint64
		switch {
		case field == 1 && kind == protowire.Fixed64Type:
			h.generation, n = protowire.ConsumeFixed64(value)
		case field == 2 && kind == protowire.VarintType:
			number, n = protowire.ConsumeVarint(value)
			h.recordedAt = fromNanoseconds(int64(number))
		case field == 3 && kind == protowire.VarintType:
			h.preceding, n = protowire.ConsumeVarint(value)
		default:
			n = protowire.ConsumeFieldValue(field, kind, value)
		}
		if n < 0 {
			return header{}, protowire.ParseError(n)
		}
		value = value[n:]
	}
	return h, nil
}

// decodeBatch reads a LogRecord, the value of the log's key with that number.
func decodeBatch(seq uint64, value []byte) (*Batch, header, error) {
	var m storagev1.LogRecord
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, header{}, fmt.Errorf("batch %d of the log is damaged: %w", seq, err)
	}
	h := header{
		generation: m.GetGeneration(),
		recordedAt: fromNanoseconds(m.GetRecordedAtNs()),
		preceding:  m.GetPrecedingBytes(),
	}
	b := newBatch(Position{Generation: h.generation, Seq: seq}, len(m.GetChanges()))
	b.RecordedAt = h.recordedAt
	for _, c := range m.GetChanges() {
		before, after := fromStep(c.GetStep(), c.GetBefore(), c.GetAfter())
		e := newEntry(instance.Change{
			Type:       instance.ChangeType(c.GetType()),
			Before:     before,
			After:      after,
			Cause:      fromCause(c.GetCause()),
			Source:     instance.Source(c.GetSource()),
			OccurredAt: fromNanoseconds(c.GetOccurredAtNs()),
			ObservedAt: fromNanoseconds(c.GetObservedAtNs()),
			Inferred:   c.GetInferred(),
		})
		if e.change.Before == nil && e.change.After == nil {
			return nil, header{}, fmt.Errorf("batch %d of the log is damaged: a change without an instance", seq)
		}
		b.add(e)
	}
	b.Bytes = len(value)
	return b, h, nil
}

// decodeInstanceRecord reads an InstanceRecord.
func decodeInstanceRecord(value []byte) (*Record, error) {
	var m storagev1.InstanceRecord
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, err
	}
	before, after := fromStep(m.GetStep(), m.GetPrevious(), m.GetInstance())
	if after == nil {
		return nil, errors.New("it has no instance")
	}
	return &Record{
		once:      new(once),
		Instance:  after,
		Previous:  before,
		Cause:     fromCause(m.GetCause()),
		Source:    instance.Source(m.GetSource()),
		ChangedAt: fromNanoseconds(m.GetChangedAtNs()),
		Position:  Position{Generation: m.GetGeneration(), Seq: m.GetSeq()},
		Index:     m.GetIndex(),
	}, nil
}

// fromStep returns the instance before and after a change. Without a step, which format 1
// does not know, they are written in full.
func fromStep(m *storagev1.Step, fullBefore, fullAfter *storagev1.Instance) (before, after *instance.Instance) {
	if m == nil {
		return fromInstance(fullBefore), fromInstance(fullAfter)
	}
	before, after = fromInstance(m.GetBefore()), fromInstance(m.GetAfter())
	if before != nil && after != nil {
		restoreAll(before, after, fields(m.GetSame()))
	}
	return before, after
}

func fromInstance(m *storagev1.Instance) *instance.Instance {
	if m == nil {
		return nil
	}
	return &instance.Instance{
		ID:                    instance.ID(m.GetId()),
		AccountID:             m.GetAccountId(),
		Region:                m.GetRegion(),
		AvailabilityZone:      m.GetAvailabilityZone(),
		Type:                  m.GetType(),
		State:                 instance.State(m.GetState()),
		StateReason:           fromReason(m.GetStateReason()),
		StateTransitionReason: m.GetStateTransitionReason(),
		LaunchTime:            fromNanoseconds(m.GetLaunchTimeNs()),
		PrivateIPAddress:      m.GetPrivateIpAddress(),
		PublicIPAddress:       m.GetPublicIpAddress(),
		Tenancy:               m.GetTenancy(),
		RootDeviceType:        m.GetRootDeviceType(),
		Lifecycle:             m.GetLifecycle(),
		Tags:                  m.GetTags(),
		Simulator:             fromSimulator(m.GetSimulator()),
	}
}

func fromSimulator(m *storagev1.SimulatorAttributes) *instance.SimulatorAttributes {
	if m == nil {
		return nil
	}
	return &instance.SimulatorAttributes{
		DisableAPIStop:        m.GetDisableApiStop(),
		DisableAPITermination: m.GetDisableApiTermination(),
		HibernationConfigured: m.GetHibernationConfigured(),
		Hibernated:            m.GetHibernated(),
		MemoryLost:            m.GetMemoryLost(),
		CPUCredits:            m.GetCpuCredits(),
		BilledSeconds:         m.GetBilledSeconds(),
		BilledFrom:            fromNanoseconds(m.GetBilledFromNs()),
		EverRunning:           m.GetEverRunning(),
		NextState:             instance.State(m.GetNextState()),
		NextAt:                fromNanoseconds(m.GetNextAtNs()),
		NextReason:            fromReason(m.GetNextReason()),
		Transitions:           m.GetTransitions(),
		Launched:              fromLaunched(m.GetLaunched()),
	}
}

func fromLaunched(m *storagev1.Launched) *instance.Launched {
	if m == nil {
		return nil
	}
	return &instance.Launched{
		ReservationID: m.GetReservationId(),
		ImageID:       m.GetImageId(),
		ClientToken:   m.GetClientToken(),
		Digest:        m.GetDigest(),
	}
}

func fromReason(m *storagev1.StateReason) *instance.StateReason {
	if m == nil {
		return nil
	}
	return &instance.StateReason{Code: m.GetCode(), Message: m.GetMessage()}
}

func fromCause(m *storagev1.Cause) instance.Cause {
	return instance.Cause{
		Principal:   m.GetPrincipal(),
		Verb:        instance.Verb(m.GetVerb()),
		RequestID:   m.GetRequestId(),
		ClientToken: m.GetClientToken(),
	}
}
