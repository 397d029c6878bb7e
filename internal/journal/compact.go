package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// compact gives a stored token its answer in the compact form, if there is one, and
// packs its ids.
func compact(m *storagev1.Token, t *Token, log logID) {
	m.InstanceIds, m.PackedIds = nil, codec.AppendIDs(nil, t.IDs)
	answer, ok := compactAnswer(t, log)
	if !ok {
		return
	}
	failures := m.GetAnswer().GetFailures()
	m.Answer, m.CompactAnswer = nil, answer
	answer.Failures = failures
	plain := appendMessage(nil, answer)
	if packed := s2.Encode(nil, plain); len(packed) < len(plain) {
		m.CompactAnswer, m.CompressedAnswer = nil, packed
	}
}

// compactAnswer returns the answer of a token without its failures, unless there is none,
// its cursors are not of this log, or its changes not of the ids of the request in order.
func compactAnswer(t *Token, log logID) (m *storagev1.CompactAnswer, ok bool) {
	if t.Answer == nil {
		return nil, false
	}
	m = &storagev1.CompactAnswer{}
	if m.Position, ok = storedPosition(t.Answer.Cursor, log); !ok {
		return nil, false
	}
	if m.EndPosition, ok = storedPosition(t.Answer.EndCursor, log); !ok {
		return nil, false
	}
	next, at := 0, int64(0)
	for _, c := range t.Answer.Changes {
		skipped := slices.Index(t.IDs[next:], c.ID)
		if skipped < 0 {
			return nil, false
		}
		next += skipped + 1
		m.SkippedIds = append(m.SkippedIds, uint32(skipped))
		m.Previous = append(m.Previous, storagev1.InstanceState(c.Previous))
		m.Current = append(m.Current, storagev1.InstanceState(c.Current))
		ns := codec.Nanoseconds(c.At)
		m.AtStepNs = append(m.AtStepNs, ns-at)
		at = ns
	}
	return m, true
}

func storedPosition(cursor string, log logID) (*storagev1.TokenPosition, bool) {
	id, p, err := decodeCursor(cursor)
	return &storagev1.TokenPosition{Generation: p.Epoch, Seq: p.Seq}, err == nil && id == log
}

// compacted returns the answer of a stored token that has one in the compact form, nil
// when it has none.
func compacted(m *storagev1.Token, ids []instance.ID, log logID) (*Answer, error) {
	c := m.GetCompactAnswer()
	if packed := m.GetCompressedAnswer(); len(packed) > 0 {
		plain, err := codec.DecompressBytes(packed)
		if err != nil {
			return nil, err
		}
		c = &storagev1.CompactAnswer{}
		if err := proto.Unmarshal(plain, c); err != nil {
			return nil, err
		}
	}
	if c == nil {
		return nil, nil
	}
	changes := len(c.GetSkippedIds())
	if len(c.GetPrevious()) != changes || len(c.GetCurrent()) != changes || len(c.GetAtStepNs()) != changes {
		return nil, fmt.Errorf("its answer has lists of different lengths")
	}
	a := &Answer{
		Cursor:    encodeCursor(log, Position{Epoch: c.GetPosition().GetGeneration(), Seq: c.GetPosition().GetSeq()}),
		EndCursor: encodeCursor(log, Position{Epoch: c.GetEndPosition().GetGeneration(), Seq: c.GetEndPosition().GetSeq()}),
		Failures:  toFailures(c.GetFailures()),
	}
	at := int64(0)
	for n, skipped := range c.GetSkippedIds() {
		if uint64(skipped) >= uint64(len(ids)) {
			return nil, errors.New("its answer has more instances than its request")
		}
		at += c.GetAtStepNs()[n]
		a.Changes = append(a.Changes, instance.StateChange{
			ID:       ids[skipped],
			Previous: instance.State(c.GetPrevious()[n]),
			Current:  instance.State(c.GetCurrent()[n]),
			At:       codec.Time(at),
		})
		ids = ids[skipped+1:]
	}
	return a, nil
}
