package client

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxRequestBytes is the largest request that the service takes.
const maxRequestBytes = 1 << 20

// checkRequest refuses a request that cannot be sent, before gRPC does: its error would
// leave it open whether the request has arrived.
func (c *Client) checkRequest(req proto.Message) *Error {
	if strings.ContainsFunc(c.opts.Principal, func(r rune) bool { return r < ' ' || r > '~' }) {
		return unsendable("principal", "is not printable ASCII")
	}
	if n := proto.Size(req); n > maxRequestBytes {
		return newError(status.Errorf(codes.InvalidArgument, "the request has %d bytes: want at most %d; nothing was sent", n, maxRequestBytes), nil)
	}
	if field := notUTF8(req.ProtoReflect()); field != "" {
		return unsendable(field, "is not UTF-8")
	}
	return nil
}

func unsendable(field, problem string) *Error {
	s := status.New(codes.InvalidArgument, field+": "+problem+"; nothing was sent")
	if detailed, err := s.WithDetails(&errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: problem}},
	}); err == nil {
		s = detailed
	}
	return newError(s.Err(), nil)
}

// notUTF8 returns the path of a text in a message that is not UTF-8, such as
// "filter.tags[0].key"; empty if there is none.
func notUTF8(m protoreflect.Message) (path string) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		name := string(field.Name())
		switch {
		case field.IsMap():
			value.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				if path = notUTF8In(field.MapKey(), key.Value(), name); path == "" {
					path = notUTF8In(field.MapValue(), value, fmt.Sprintf("%s[%q]", name, key.String()))
				}
				return path == ""
			})
		case field.IsList():
			for i, list := 0, value.List(); i < list.Len() && path == ""; i++ {
				path = notUTF8In(field, list.Get(i), fmt.Sprintf("%s[%d]", name, i))
			}
		default:
			path = notUTF8In(field, value, name)
		}
		return path == ""
	})
	return path
}

func notUTF8In(field protoreflect.FieldDescriptor, value protoreflect.Value, name string) string {
	switch {
	case field.Kind() == protoreflect.StringKind && !utf8.ValidString(value.String()):
		return name
	case field.Message() != nil:
		if path := notUTF8(value.Message()); path != "" {
			return name + "." + path
		}
	}
	return ""
}
