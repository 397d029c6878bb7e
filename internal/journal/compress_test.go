package journal

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// manyChanges are more than are written without being packed.
func manyChanges() (changes []instance.Change, encoded []byte) {
	for n := range 100 {
		c := change(id(n), instance.States()[n%6])
		changes, encoded = append(changes, c), codec.AppendChange(encoded, &c)
	}
	return changes, encoded
}

func TestCompressedChangesAreSmallAndRoundTrip(t *testing.T) {
	want, encoded := manyChanges()
	value := codec.AppendHeader(codec.AppendCompressed(nil, encoded), 7, launch, 99)
	if len(value) > len(encoded)/3 {
		t.Errorf("%d bytes are packed into %d", len(encoded), len(value))
	}
	b, h, err := decodeBatch(3, value)
	if err != nil {
		t.Fatal(err)
	}
	if want := (codec.Header{Epoch: 7, RecordedAt: launch, Preceding: 99}); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	var got []instance.Change
	for i := range b.Events {
		got = append(got, *b.Events[i].Change)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the changes came back otherwise (-want +got):\n%s", diff)
	}
	if b.Bytes != len(encoded) {
		t.Errorf("the batch takes %d bytes, want what it is unpacked, %d", b.Bytes, len(encoded))
	}
}

func TestAFewChangesAreNotCompressed(t *testing.T) {
	c := change(id(1), instance.StatePending)
	encoded := codec.AppendChange(nil, &c)
	if diff := cmp.Diff(encoded, codec.AppendCompressed(nil, encoded)); diff != "" {
		t.Errorf("they are written otherwise (-want +got):\n%s", diff)
	}
}

// Processes that share an etcd look at the format only when they start: what one of an
// older version finds later must stop it, too.
func TestADecoderWithoutCompressionFindsNoInstance(t *testing.T) {
	_, encoded := manyChanges()
	var batch storagev1.LogRecord
	if err := proto.Unmarshal(codec.AppendCompressed(nil, encoded), &batch); err != nil {
		t.Fatal(err)
	}
	if c := batch.GetChanges(); len(c) != 1 || proto.Size(c[0]) != 0 {
		t.Errorf("it finds %v, want one change without an instance", c)
	}
}

func TestInvalidCompressedChangesAreRefused(t *testing.T) {
	_, encoded := manyChanges()
	for name, packed := range map[string][]byte{
		"nothing":           {},
		"no block of S2":    {0xff, 0xff, 0xff},
		"of four gigabytes": binary.AppendUvarint(nil, 1<<32-1),
		"cut off":           codec.AppendCompressed(nil, encoded)[100:200],
	} {
		t.Run(name, func(t *testing.T) {
			value := protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), packed)
			if b, _, err := decodeBatch(1, value); err == nil {
				t.Errorf("%d events are read", len(b.Events))
			}
		})
	}
}
