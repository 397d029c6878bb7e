package journal

import (
	"errors"
	"slices"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// packFrom is the size from which changes are packed: below, they gain little.
	packFrom = 1 << 10
	// mostUnpacked is the most that packed changes may become; more is no batch of ours.
	mostUnpacked = 2 * maxRequestBytes
)

// The fields of LogRecord in which changes are.
const (
	changesField       = 4
	packedChangesField = 5
)

var errTooLarge = errors.New("its packed changes are larger than a batch can be")

// appendPacked appends changes, which are encoded already, to a LogRecord. Those of one
// batch have much in common, and etcd copies several times what it is given.
func appendPacked(b, changes []byte) []byte {
	if len(changes) < packFrom {
		return append(b, changes...)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, changesField, protowire.BytesType), 0)
	b, start := open(b, packedChangesField)
	b = slices.Grow(b, s2.MaxEncodedLen(len(changes)))
	return shut(b[:len(b)+len(s2.Encode(b[len(b):cap(b)], changes))], start)
}

// unpack returns what a LogRecord says beside its changes, and a message that has the
// changes.
func unpack(value []byte) (header, []byte, error) {
	h, packed, err := decodeHeader(value)
	if err != nil || packed == nil {
		return h, value, err
	}
	switch size, err := s2.DecodedLen(packed); {
	case err != nil:
		return header{}, nil, err
	case size > mostUnpacked:
		return header{}, nil, errTooLarge
	}
	changes, err := s2.Decode(nil, packed)
	return h, changes, err
}
