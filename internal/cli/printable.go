package cli

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Tags and other texts may be written by others, and a terminal acts on escape sequences, line
// ends and bidirectional marks. Tables therefore show unprintable characters as escapes, such
// as \x1b; JSON documents use JSON's own escapes.

// Printable returns a text in one line, with unprintable characters replaced by escapes such
// as \x1b.
func Printable(text string) string {
	if !strings.ContainsFunc(text, unprintable) && utf8.ValidString(text) {
		return text
	}
	var out strings.Builder
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)):
			fmt.Fprintf(&out, `\x%02x`, text[i])
		case !unprintable(r):
			out.WriteRune(r)
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\t':
			out.WriteString(`\t`)
		case r == '\r':
			out.WriteString(`\r`)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			fmt.Fprintf(&out, `\U%08x`, r)
		}
	}
	return out.String()
}

// unprintable reports whether a terminal may act on a character instead of showing it.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// printableJSON escapes the unprintable characters of a JSON document. Its meaning is
// unchanged, since outside of strings it is ASCII.
func printableJSON(raw []byte) []byte {
	escaped := func(r rune) bool { return r >= 0x7f && unprintable(r) }
	if !strings.ContainsFunc(string(raw), escaped) {
		return raw
	}
	out := make([]byte, 0, len(raw)+16)
	for _, r := range string(raw) {
		switch {
		case !escaped(r):
			out = utf8.AppendRune(out, r)
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		}
	}
	return out
}

// printableResponses makes every text of every response printable, so that verbs need not.
// The messages of errors go through [errorLines].
func printableResponses() []grpc.DialOption {
	unary := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		makePrintable(reply)
		return err
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, desc, conn, method, opts...)
		return printableStream{s}, err
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)}
}

type printableStream struct{ grpc.ClientStream }

// RecvMsg receives a message and makes its texts printable.
func (s printableStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	makePrintable(m)
	return err
}

func makePrintable(m any) {
	if m, ok := m.(proto.Message); ok {
		makeMessagePrintable(m.ProtoReflect())
	}
}

func makeMessagePrintable(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			makeMapPrintable(field, value.Map())
		case field.IsList():
			for i := range value.List().Len() {
				if v, changed := printableValue(field, value.List().Get(i)); changed {
					value.List().Set(i, v)
				}
			}
		default:
			if v, changed := printableValue(field, value); changed {
				m.Set(field, v)
			}
		}
		return true
	})
}

func makeMapPrintable(field protoreflect.FieldDescriptor, m protoreflect.Map) {
	var renamed [][2]protoreflect.MapKey
	m.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		if value, changed := printableValue(field.MapValue(), value); changed {
			m.Set(key, value)
		}
		if name, changed := printableValue(field.MapKey(), key.Value()); changed {
			renamed = append(renamed, [2]protoreflect.MapKey{key, name.MapKey()})
		}
		return true
	})
	for _, r := range renamed {
		m.Set(r[1], m.Get(r[0]))
		m.Clear(r[0])
	}
}

// printableValue returns a value with its texts made printable, and whether it changed. A
// message is modified in place.
func printableValue(field protoreflect.FieldDescriptor, value protoreflect.Value) (protoreflect.Value, bool) {
	switch field.Kind() {
	case protoreflect.MessageKind:
		makeMessagePrintable(value.Message())
	case protoreflect.StringKind:
		text := value.String()
		if p := Printable(text); p != text {
			return protoreflect.ValueOfString(p), true
		}
	}
	return value, false
}
