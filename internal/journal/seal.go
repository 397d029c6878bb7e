package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/internal/instance"
)

// From format 4 on every value in etcd is sealed:
//
//	byte 0     sealMark, with which no encoded message begins
//	bytes 1-4  CRC-32C, little endian
//	bytes 5-   the message
//
// The checksum is that of the message and of the key below the prefix, so that a value
// that turns up under another key is noticed too. A value tells by itself whether it is
// sealed; which ones must be is what the log's meta says.
const (
	sealMark = 0
	sealSize = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged is wrapped by errors about stored data that is not as it was written.
var ErrDamaged = errors.New("stored data is damaged")

// damage is something that is not as it was written.
type damage struct {
	what  string
	cause error
}

func (d *damage) Error() string { return fmt.Sprintf("%s is damaged: %v", d.what, d.cause) }

// damagedValue is a value in etcd that is not as it was written.
func damagedValue(key []byte, cause error) error {
	return &damage{what: "the value of " + string(key), cause: cause}
}

func (d *damage) Unwrap() []error { return []error{ErrDamaged, d.cause} }

// idSum is the sum of the CRC-32C of ids: it tells sets of ids apart, in whatever order
// they come and go.
type idSum uint64

func sumID(id instance.ID) idSum { return idSum(crc32.Checksum([]byte(id), castagnoli)) }

func sumIDs(ids iter.Seq[instance.ID]) (sum idSum) {
	for id := range ids {
		sum += sumID(id)
	}
	return sum
}

var (
	errChecksum   = errors.New("its checksum is wrong")
	errNoChecksum = errors.New("it has no checksum")
)

// seals reports whether values are written with checksums.
func (s *store) seals() bool { return s.meta.Load().GetChecksumsFromRevision() > 0 }

// reserveSeal appends room for a seal to b, which comes before a message, if the log has checksums.
func (s *store) reserveSeal(b []byte) []byte {
	if !s.seals() {
		return b
	}
	return append(b, sealMark, 0, 0, 0, 0)
}

// seal completes a value that was begun with reserveSeal at b[start:] and reaches to the
// end of b. It uses some of the capacity beyond.
func (s *store) seal(b []byte, start int, key string) []byte {
	if len(b) == start || b[start] != sealMark {
		return b
	}
	end := len(b)
	b = append(b, strings.TrimPrefix(key, s.keys.prefix)...)
	binary.LittleEndian.PutUint32(b[start+1:], crc32.Checksum(b[start+sealSize:], castagnoli))
	return b[:end]
}

// put is the operation that writes a message under a key.
func (s *store) put(key string, m proto.Message, options ...clientv3.OpOption) clientv3.Op {
	b := s.reserveSeal(make([]byte, 0, sealSize+proto.Size(m)+len(key)))
	return putBytes(key, s.seal(appendMessage(b, m), 0, key), options...)
}

// appendMessage encodes one of our own messages, which cannot fail.
func appendMessage(b []byte, m proto.Message) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		panic(fmt.Sprintf("journal: encode %T: %v", m, err))
	}
	return b
}

// unseal returns the message in a value that was read. Errors are of type damage.
func (s *store) unseal(kv *mvccpb.KeyValue) ([]byte, error) {
	if from := s.meta.Load().GetChecksumsFromRevision(); from > 0 && kv.ModRevision >= from && !sealed(kv) {
		return nil, damagedValue(kv.Key, errNoChecksum)
	}
	return s.verify(kv)
}

func sealed(kv *mvccpb.KeyValue) bool { return len(kv.Value) > 0 && kv.Value[0] == sealMark }

// verify is unseal for a value that may or may not be sealed.
func (s *store) verify(kv *mvccpb.KeyValue) ([]byte, error) {
	if !sealed(kv) {
		return kv.Value, nil
	}
	if len(kv.Value) < sealSize {
		return nil, damagedValue(kv.Key, errChecksum)
	}
	message, key := kv.Value[sealSize:], kv.Key
	if n := len(s.keys.prefix); len(key) >= n && string(key[:n]) == s.keys.prefix {
		key = key[n:]
	}
	sum := crc32.Update(crc32.Checksum(message, castagnoli), castagnoli, key)
	if sum != binary.LittleEndian.Uint32(kv.Value[1:]) {
		return nil, damagedValue(kv.Key, errChecksum)
	}
	return message, nil
}

// get decodes a value that was read. Errors are of type damage.
func (s *store) get(kv *mvccpb.KeyValue, m proto.Message) error {
	message, err := s.unseal(kv)
	if err != nil {
		return err
	}
	return decode(kv, message, m)
}

func decode(kv *mvccpb.KeyValue, message []byte, m proto.Message) error {
	if err := proto.Unmarshal(message, m); err != nil {
		return damagedValue(kv.Key, err)
	}
	return nil
}
