package server

import (
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// maxFrameBytes is the size at which messages of a stream are split. It is well below the
// 1 MiB of the contract, so that a slow subscriber holds little memory: one message in the
// handler, one in the transport, and a page of the log. A single event may be larger, for
// example if its instance has 50 tags of maximum length.
const maxFrameBytes = 64 << 10

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

// encodedEvent returns an event encoded as an element of Events, without the last byte: the
// value of its match, which is all that differs between subscribers. It is encoded once for
// all of them.
func encodedEvent(b *lifecycle.Batch, e *lifecycle.Event) []byte {
	return e.Memo(func() []byte { return appendEvent(nil, b, e) })
}

// appendEvent appends an encodedEvent.
func appendEvent(out []byte, b *lifecycle.Batch, e *lifecycle.Event) []byte {
	event := changeMessage(b.Position.Seq, e.Index, e.Change)
	size := proto.Size(event) + 2
	out = slices.Grow(out, size+6)
	out = protowire.AppendTag(out, eventsEventsField, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(size))
	out = mustAppend(out, event)
	return protowire.AppendTag(out, eventMatchField, protowire.VarintType)
}

// wholeBatch returns the messages of a batch for subscribers without a filter, encoded once
// for all of them. The last one has the cursor after the batch.
func wholeBatch(b *lifecycle.Batch, cursor string) [][]byte {
	return b.Memo(func() [][]byte {
		var messages [][]byte
		var events []byte
		for i := range b.Events {
			before := len(events)
			events = appendEvent(events, b, &b.Events[i])
			events = append(events, byte(matchOfAll(b.Events[i].Change.Type)))
			if before > 0 && len(events) > maxFrameBytes {
				messages = append(messages, append(frameHead("", before), events[:before]...))
				events = events[:copy(events, events[before:])]
			}
		}
		return append(messages, append(frameHead(cursor, len(events)), events...))
	})
}

// frameHead returns the part of a message that precedes its events.
func frameHead(cursor string, size int) []byte {
	head := make([]byte, 0, len(cursor)+16+size)
	if cursor != "" {
		head = protowire.AppendTag(head, responseCursorField, protowire.BytesType)
		head = protowire.AppendString(head, cursor)
	}
	head = protowire.AppendTag(head, responseEventsField, protowire.BytesType)
	return protowire.AppendVarint(head, uint64(size))
}

// eventFrame collects encoded events for one message.
type eventFrame struct {
	pieces mem.BufferSlice
	size   int
}

// add adds an event without copying it.
func (f *eventFrame) add(encoded []byte, match instancedv1.EventMatch) {
	f.pieces = append(f.pieces, mem.SliceBuffer(encoded), matchBytes[match])
	f.size += len(encoded) + 1
}

// frame returns the message.
func (f *eventFrame) frame(cursor string) frame {
	head := mem.SliceBuffer(frameHead(cursor, f.size))
	return frame{append(mem.BufferSlice{head}, f.pieces...)}
}

// mustAppend encodes a message that this package made, which cannot fail.
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
