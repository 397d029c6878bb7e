package codec

import (
	"errors"
	"slices"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// minCompressed is the smallest size at which changes are compressed: smaller ones gain little.
	minCompressed = 1 << 10
	// MaxBatch is how many bytes of changes one batch has at most.
	MaxBatch = 1 << 20
	// maxDecompressed bounds what compressed data may expand to: no batch is larger.
	maxDecompressed = 2 * MaxBatch
)

// The fields of LogRecord that hold changes.
const (
	changesField           = 4
	compressedChangesField = 5
)

var errTooLarge = errors.New("its compressed data is larger than anything that is written")

// AppendCompressed appends encoded changes to a LogRecord, compressed unless they are few. The
// changes of a batch have much in common, and etcd copies what it is given several times.
func AppendCompressed(b, changes []byte) []byte {
	if len(changes) < minCompressed {
		return append(b, changes...)
	}
	// An empty change, which versions that cannot decompress refuse.
	b = protowire.AppendVarint(protowire.AppendTag(b, changesField, protowire.BytesType), 0)
	b, start := open(b, compressedChangesField)
	b = slices.Grow(b, s2.MaxEncodedLen(len(changes)))
	return shut(b[:len(b)+len(s2.Encode(b[len(b):cap(b)], changes))], start)
}

// Decompress returns the header of a LogRecord, and a message that has its changes.
func Decompress(value []byte) (Header, []byte, error) {
	h, compressed, err := DecodeHeader(value)
	if err != nil || compressed == nil {
		return h, value, err
	}
	changes, err := DecompressBytes(compressed)
	if err != nil {
		return Header{}, nil, err
	}
	return h, changes, nil
}

// DecompressBytes returns what s2 compressed, unless that is larger than 2 MiB.
func DecompressBytes(compressed []byte) ([]byte, error) {
	switch size, err := s2.DecodedLen(compressed); {
	case err != nil:
		return nil, err
	case size > maxDecompressed:
		return nil, errTooLarge
	}
	return s2.Decode(nil, compressed)
}
