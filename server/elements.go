package server

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxElements is how many fields a large request may have, counting each element of a list.
// A CreateInstances of 10,000 instances with two tags each has fewer.
const maxElements = 150_000

// elements counts the fields of an encoded message, nested ones included, until there are
// more than limit. It stops at what cannot be decoded.
func elements(wire []byte, message protoreflect.MessageDescriptor, limit int) int {
	count := 0
	for len(wire) > 0 && count <= limit {
		number, kind, n := protowire.ConsumeTag(wire)
		if n < 0 {
			break
		}
		wire = wire[n:]
		if n = protowire.ConsumeFieldValue(number, kind, wire); n < 0 {
			break
		}
		count++
		field := message.Fields().ByNumber(number)
		if kind == protowire.BytesType && field != nil && field.Message() != nil {
			inner, _ := protowire.ConsumeBytes(wire)
			count += elements(inner, field.Message(), limit-count)
		}
		wire = wire[n:]
	}
	return count
}
