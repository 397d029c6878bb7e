package server

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Numbers of the fields of a snapshot that are encoded by hand.
const (
	responseSnapshotField  = 3 // WatchInstancesResponse.snapshot
	snapshotInstancesField = 1 // Snapshot.instances
)

// encodedInstance returns an instance encoded as an element of Snapshot. It is encoded once
// for each change of the instance.
func encodedInstance(r *lifecycle.Record) []byte {
	return r.Memo(func() []byte {
		m := instanceMessage(r.Instance)
		size := proto.Size(m)
		out := make([]byte, 0, protowire.SizeTag(snapshotInstancesField)+protowire.SizeBytes(size))
		out = protowire.AppendTag(out, snapshotInstancesField, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		return mustAppend(out, m)
	})
}

// snapshotFrame collects encoded instances for one message.
type snapshotFrame struct {
	// head is the encoded snapshot without its instances.
	head   *instancedv1.Snapshot
	pieces mem.BufferSlice
	size   int
}

// add adds an instance without copying it.
func (f *snapshotFrame) add(encoded []byte) {
	f.pieces = append(f.pieces, mem.SliceBuffer(encoded))
	f.size += len(encoded)
}

// frame returns the message.
func (f *snapshotFrame) frame(cursor string) frame {
	var head []byte
	if cursor != "" {
		head = protowire.AppendTag(head, responseCursorField, protowire.BytesType)
		head = protowire.AppendString(head, cursor)
	}
	head = protowire.AppendTag(head, responseSnapshotField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(proto.Size(f.head)+f.size))
	head = mustAppend(head, f.head)
	return frame{append(mem.BufferSlice{mem.SliceBuffer(head)}, f.pieces...)}
}
