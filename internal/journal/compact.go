package journal

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
)

// The first byte of a packed id: its form and, of a long one, the first digit.
const (
	longID  = 0x00 // 16 more digits in 8 bytes
	shortID = 0x10 // 8 digits in 4 bytes
	otherID = 0x20 // a length, and the text
)

var errPackedIDs = errors.New("its instance ids are not packed as they should be")

// appendIDs appends ids in half the bytes of their digits.
func appendIDs(b []byte, ids []instance.ID) []byte {
	for _, id := range ids {
		if packed, ok := appendDigits(b, string(id)); ok {
			b = packed
			continue
		}
		b = binary.AppendUvarint(append(b, otherID), uint64(len(id)))
		b = append(b, id...)
	}
	return b
}

// appendDigits appends an id that is "i-" and 8 or 17 digits, in lower case.
func appendDigits(b []byte, id string) ([]byte, bool) {
	form, digits := byte(shortID), ""
	switch {
	case len(id) == 10:
		digits = id[2:]
	case len(id) == 19:
		first := value(id[2])
		if first < 0 {
			return b, false
		}
		form, digits = longID|byte(first), id[3:]
	default:
		return b, false
	}
	if id[:2] != "i-" {
		return b, false
	}
	packed := append(b, form)
	for n := 0; n < len(digits); n += 2 {
		high, low := value(digits[n]), value(digits[n+1])
		if high < 0 || low < 0 {
			return b, false
		}
		packed = append(packed, byte(high<<4|low))
	}
	return packed, true
}

// value returns the value of a digit in lower case, or -1.
func value(digit byte) int {
	switch {
	case '0' <= digit && digit <= '9':
		return int(digit - '0')
	case 'a' <= digit && digit <= 'f':
		return int(digit-'a') + 10
	}
	return -1
}

// unpackIDs returns what appendIDs has packed.
func unpackIDs(b []byte) (ids []instance.ID, err error) {
	for len(b) > 0 {
		form := b[0]
		b = b[1:]
		size := uint64(0)
		switch {
		case form < shortID:
			size = 8
		case form == shortID:
			size = 4
		case form == otherID:
			n := 0
			if size, n = binary.Uvarint(b); n <= 0 {
				return nil, errPackedIDs
			}
			b = b[n:]
		default:
			return nil, errPackedIDs
		}
		if size > uint64(len(b)) {
			return nil, errPackedIDs
		}
		text := b[:size]
		b = b[size:]
		var id [19]byte
		switch {
		case form < shortID:
			copy(id[:], "i-")
			id[2] = "0123456789abcdef"[form]
			hex.Encode(id[3:], text)
			ids = append(ids, instance.ID(id[:]))
		case form == shortID:
			copy(id[:], "i-")
			hex.Encode(id[2:], text)
			ids = append(ids, instance.ID(id[:10]))
		default:
			ids = append(ids, instance.ID(text))
		}
	}
	return ids, nil
}

// compact gives a stored token its answer in the compact form, if there is one, and
// packs its ids.
func compact(m *storagev1.Token, t *Token, log logID) {
	m.InstanceIds, m.PackedIds = nil, appendIDs(nil, t.IDs)
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
		ns := nanoseconds(c.At)
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
		size, err := s2.DecodedLen(packed)
		if err != nil {
			return nil, err
		}
		if size > mostUnpacked {
			return nil, errTooLarge
		}
		plain, err := s2.Decode(nil, packed)
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
			At:       fromNanoseconds(at),
		})
		ids = ids[skipped+1:]
	}
	return a, nil
}
