package server_test

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// digestIndex holds for each cursor a digest of what precedes it, as the first subscriber
// to reach it saw it. So any number of subscribers without a filter that start at the same
// cursor are compared without keeping events.
type digestIndex struct {
	seed    maphash.Seed
	mu      sync.RWMutex
	entries map[string]prefixDigest
}

// prefixDigest is the number of events and a digest of them in order.
type prefixDigest struct {
	events int
	digest uint64
}

func newDigestIndex() *digestIndex {
	return &digestIndex{seed: maphash.MakeSeed(), entries: map[string]prefixDigest{}}
}

// agree compares what leads to a cursor.
func (l *digestIndex) agree(cursor string, seen prefixDigest) error {
	l.mu.RLock()
	was, known := l.entries[cursor]
	l.mu.RUnlock()
	if !known {
		l.mu.Lock()
		if was, known = l.entries[cursor]; !known {
			was = seen
			l.entries[cursor] = seen
		}
		l.mu.Unlock()
	}
	if was != seen {
		return fmt.Errorf("cursor %s is behind %d events that are not the %d which another subscriber had there", cursor, seen.events, was.events)
	}
	return nil
}

// streamDigest checks a stream without a filter as it arrives: there are no gaps between
// events, no cursor splits a batch, and what precedes each cursor agrees with the index.
type streamDigest struct {
	seen *digestIndex
	prefixDigest
	revision, index uint64
	// open is whether events have come since the last cursor.
	open bool
}

// Numbers of the fields that a streamDigest reads.
const (
	responseCursorField, responseEventsField                = 1, 4
	eventsEventsField                                       = 1
	eventRevisionField, eventIndexField, eventInstanceField = 2, 3, 4
)

// add adds an encoded WatchInstancesResponse and returns its cursor.
func (t *streamDigest) add(wire []byte) (cursor string, err error) {
	for field, value := range fields(wire) {
		switch field {
		case responseCursorField:
			cursor = string(value)
		case responseEventsField:
			for _, event := range fields(value) {
				if err := t.addEvent(event); err != nil {
					return "", err
				}
			}
		}
	}
	if cursor == "" {
		return "", nil
	}
	t.open = false
	return cursor, t.seen.agree(cursor, t.prefixDigest)
}

func (t *streamDigest) addEvent(wire []byte) error {
	var revision, index, digest uint64
	// The entries of a map come in any order, so that this must not count.
	add := func(field protowire.Number, value []byte) {
		digest += maphash.Bytes(t.seen.seed, value) * uint64(2*field+1)
	}
	for field, value := range fields(wire) {
		switch field {
		case eventRevisionField:
			revision, _ = protowire.ConsumeVarint(value)
		case eventIndexField:
			index, _ = protowire.ConsumeVarint(value)
		case eventInstanceField:
			for attribute, value := range fields(value) {
				add(eventInstanceField<<8+attribute, value)
			}
			continue
		}
		add(field, value)
	}
	next := revision > t.revision && index == 0 && !t.open
	if !next && (revision != t.revision || index != t.index+1 || !t.open) {
		return fmt.Errorf("event %d.%d comes after %d.%d (with a cursor between them: %t)", revision, index, t.revision, t.index, !t.open)
	}
	t.revision, t.index, t.open = revision, index, true
	t.events++
	t.digest = t.digest*31 + digest
	return nil
}

// follower is a subscriber that keeps nothing of what it reads.
type follower struct {
	stream grpc.ClientStream
	digest streamDigest
	cursor atomic.Pointer[string]
	moved  chan struct{}
	err    error // once moved is closed
}

// followOn subscribes, and does not read yet.
func followOn(ctx context.Context, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest, l *digestIndex) (*follower, error) {
	stream, err := wireStream(ctx, conn, req)
	return &follower{stream: stream, digest: streamDigest{seen: l}, moved: make(chan struct{}, 1)}, err
}

// read reads until the stream ends or breaks a promise. Each message is shown to those
// who look beside it.
func (f *follower) read(look ...func(wire []byte) error) {
	defer close(f.moved)
	for {
		var cursor string
		var broken error
		if f.err = f.stream.RecvMsg(func(wire []byte) {
			cursor, broken = f.digest.add(wire)
			for _, look := range look {
				broken = errors.Join(broken, look(wire))
			}
		}); f.err == nil {
			f.err = broken
		}
		if f.err != nil {
			return
		}
		if cursor != "" {
			f.cursor.Store(&cursor)
		}
		select {
		case f.moved <- struct{}{}:
		default:
		}
	}
}

// until waits until the follower has passed a cursor.
func (f *follower) until(ctx context.Context, cursor string) error {
	for {
		if at := f.cursor.Load(); at != nil && *at == cursor {
			return nil
		}
		select {
		case _, ok := <-f.moved:
			if !ok {
				return f.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wireStream watches; RecvMsg shows a message to a func([]byte) as it came.
func wireStream(ctx context.Context, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true},
		instancedv1.InstanceService_WatchInstances_FullMethodName, grpc.ForceCodecV2(wireCodec{encoding.GetCodecV2("proto")}))
	if err != nil {
		return nil, err
	}
	return stream, errors.Join(stream.SendMsg(req), stream.CloseSend())
}

// wireCodec decodes nothing.
type wireCodec struct{ encoding.CodecV2 }

func (wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	v.(func([]byte))(buffer.ReadOnlyData())
	return nil
}

// eventsIn counts the events in an encoded WatchInstancesResponse.
func eventsIn(wire []byte) (count int) {
	for field, events := range fields(wire) {
		if field == responseEventsField {
			for range fields(events) {
				count++
			}
		}
	}
	return count
}

// fields returns the fields of an encoded message.
func fields(message []byte) iter.Seq2[protowire.Number, []byte] {
	return func(yield func(protowire.Number, []byte) bool) {
		for len(message) > 0 {
			field, kind, n := protowire.ConsumeTag(message)
			message = message[n:]
			size := protowire.ConsumeFieldValue(field, kind, message)
			value := message[:size]
			if kind == protowire.BytesType {
				value, _ = protowire.ConsumeBytes(value)
			}
			if !yield(field, value) {
				return
			}
			message = message[size:]
		}
	}
}
