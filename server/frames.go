package server

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// maxFrameBytes is where messages of a stream are split. It is well below the 1 MiB
// that the contract allows, so that a slow subscriber holds little memory: one
// message in the handler's hands and one in the transport's. The largest instance,
// with 50 tags of the longest kind, fits.
const maxFrameBytes = 128 << 10

// Numbers of the fields that are encoded by hand.
const (
	responseCursorField = 1 // WatchInstancesResponse.cursor
	responseEventsField = 4 // WatchInstancesResponse.events
	eventsEventsField   = 1 // Events.events
	eventMatchField     = 6 // Event.match
)

// matchBytes holds the values of Event.match in wire form.
var matchBytes = map[instancedv1.EventMatch]mem.SliceBuffer{
	instancedv1.EventMatch_EVENT_MATCH_ENTERED: {byte(instancedv1.EventMatch_EVENT_MATCH_ENTERED)},
	instancedv1.EventMatch_EVENT_MATCH_STAYED:  {byte(instancedv1.EventMatch_EVENT_MATCH_STAYED)},
	instancedv1.EventMatch_EVENT_MATCH_LEFT:    {byte(instancedv1.EventMatch_EVENT_MATCH_LEFT)},
}

// encodedEvent returns an event as an element of Events, without the last byte: the
// value of its match, which is the one thing that differs between subscribers. It is
// made once for all of them.
func encodedEvent(b *lifecycle.Batch, e *lifecycle.Event) []byte {
	return e.Memo(func() []byte {
		event := changeMessage(b.Position.Seq, e.Index, e.Change)
		size := proto.Size(event) + 2
		out := make([]byte, 0, size+6)
		out = protowire.AppendTag(out, eventsEventsField, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = mustAppend(out, event)
		return protowire.AppendTag(out, eventMatchField, protowire.VarintType)
	})
}

// encodedBatch returns all of a batch as one message, made once for all subscribers
// that want all of it; nothing if it is too large for one message.
func encodedBatch(b *lifecycle.Batch, cursor string) []byte {
	return b.Memo(func() []byte {
		var parts eventFrame
		for i := range b.Events {
			parts.add(encodedEvent(b, &b.Events[i]), matchOfAll(b.Events[i].Change.Type))
		}
		if parts.size > maxFrameBytes {
			return nil
		}
		return parts.frame(cursor).data.Materialize()
	})
}

// eventFrame gathers encoded events for one message.
type eventFrame struct {
	pieces mem.BufferSlice
	size   int
}

// add adds an event. It does not copy it.
func (f *eventFrame) add(encoded []byte, match instancedv1.EventMatch) {
	f.pieces = append(f.pieces, mem.SliceBuffer(encoded), matchBytes[match])
	f.size += len(encoded) + 1
}

// frame returns the message, and begins the next one.
func (f *eventFrame) frame(cursor string) frame {
	head := make([]byte, 0, len(cursor)+16)
	if cursor != "" {
		head = protowire.AppendTag(head, responseCursorField, protowire.BytesType)
		head = protowire.AppendString(head, cursor)
	}
	head = protowire.AppendTag(head, responseEventsField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(f.size))
	whole := append(mem.BufferSlice{mem.SliceBuffer(head)}, f.pieces...)
	*f = eventFrame{}
	return frame{whole}
}

// mustAppend encodes a message of our own making.
func mustAppend(out []byte, m proto.Message) []byte {
	out, err := proto.MarshalOptions{}.MarshalAppend(out, m)
	if err != nil {
		panic(err)
	}
	return out
}

// wholeFrame returns an encoded message as a frame.
func wholeFrame(encoded []byte) frame {
	return frame{mem.BufferSlice{mem.SliceBuffer(encoded)}}
}
