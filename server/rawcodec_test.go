package server_test

import (
	"strings"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }

// undecodable reports whether grpc-go refused a request before the server saw it.
func undecodable(err error) bool {
	return strings.Contains(status.Convert(err).Message(), "grpc: failed to unmarshal the received message")
}
