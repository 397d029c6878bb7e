package server

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
)

// frame is an encoded message. Its buffers may be shared by many streams and are
// never modified.
type frame struct{ data mem.BufferSlice }

// codec is the protobuf codec, except that it sends a [frame] as it is, so that an event is
// encoded once for all its subscribers. If a [request] cannot be decoded, its problem says
// so, rather than an error of the transport.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal returns the wire form of v.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(frame); ok {
		return f.data, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if data.Len() > largeRequestBytes && r.leaveLarge == nil {
		leave, err := r.enter()
		if err != nil {
			r.problem = err
			return nil
		}
		r.leaveLarge = leave
		wire := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer wire.Free()
		if elements(wire.ReadOnlyData(), r.into.ProtoReflect().Descriptor(), maxElements) > maxElements {
			r.problem = errTooManyElements
			return nil
		}
		// A long-lived request must not keep unknown fields in memory.
		if err := (protobuf.UnmarshalOptions{DiscardUnknown: !r.command}).Unmarshal(wire.ReadOnlyData(), r.into); err != nil {
			r.problem = malformed(err)
		}
	} else if err := c.CodecV2.Unmarshal(data, r.into); err != nil {
		r.problem = malformed(err)
	}
	if r.command && r.problem == nil {
		r.problem = refuseUnknown(r.into)
	}
	return nil
}
