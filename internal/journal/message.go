package journal

import (
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// message reads an encoded message field by field. The strings that it returns are parts
// of one, so that a message costs one allocation however many it has, and all of them
// stay in memory with each.
type message struct {
	wire []byte
	text string // the same bytes
	at   int
	err  error

	// number is that of the present field; scalar is its value if it is a number, else
	// its value lies between begin and end.
	number     protowire.Number
	scalar     uint64
	begin, end int
}

var errNotUTF8 = errors.New("a string is not UTF-8")

func newMessage(wire []byte) message { return message{wire: wire, text: string(wire)} }

// next goes on to the next field. It is false at the end, and at what cannot be read.
func (f *message) next() bool {
	if f.err != nil || f.at == len(f.wire) {
		return false
	}
	number, kind, n := protowire.ConsumeTag(f.wire[f.at:])
	if n < 0 {
		f.err = protowire.ParseError(n)
		return false
	}
	f.at += n
	f.number, f.scalar, f.begin, f.end = number, 0, f.at, f.at
	rest := f.wire[f.at:]
	switch kind {
	case protowire.VarintType:
		f.scalar, n = protowire.ConsumeVarint(rest)
	case protowire.Fixed64Type:
		f.scalar, n = protowire.ConsumeFixed64(rest)
	case protowire.BytesType:
		var value []byte
		value, n = protowire.ConsumeBytes(rest)
		f.begin, f.end = f.at+n-len(value), f.at+n
	default:
		n = protowire.ConsumeFieldValue(number, kind, rest)
	}
	if n < 0 {
		f.err = protowire.ParseError(n)
		return false
	}
	f.at += n
	return true
}

// string returns the present field as a string.
func (f *message) string() string {
	s := f.text[f.begin:f.end]
	if !utf8.ValidString(s) {
		f.err = errNotUTF8
	}
	return s
}

// nested returns the present field as a message.
func (f *message) nested() message {
	return message{wire: f.wire[f.begin:f.end], text: f.text[f.begin:f.end]}
}

// nestedIn reads the present field as a message, by a function.
func nestedIn[T any](f *message, read func(*message) T) T {
	inner := f.nested()
	value := read(&inner)
	if inner.err != nil {
		f.err = inner.err
	}
	return value
}
