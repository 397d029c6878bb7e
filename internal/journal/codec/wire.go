package codec

import (
	"errors"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// message reads an encoded message field by field. Its strings share one allocation, so each
// of them keeps all of them in memory.
type message struct {
	wire []byte
	text string // the same bytes
	at   int
	err  error

	// number identifies the current field. Its value is scalar if it is a number; otherwise it
	// lies between begin and end.
	number     protowire.Number
	scalar     uint64
	begin, end int
}

var errNotUTF8 = errors.New("a string is not UTF-8")

func newMessage(wire []byte) message { return message{wire: wire, text: string(wire)} }

// next advances to the next field. It returns false at the end and at malformed input.
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

// string returns the current field as a string.
func (f *message) string() string {
	s := f.text[f.begin:f.end]
	if !utf8.ValidString(s) {
		f.err = errNotUTF8
	}
	return s
}

// nested returns the current field as a message.
func (f *message) nested() message {
	return message{wire: f.wire[f.begin:f.end], text: f.text[f.begin:f.end]}
}

// nestedIn reads the current field as a message with read.
func nestedIn[T any](f *message, read func(*message) T) T {
	inner := f.nested()
	value := read(&inner)
	if inner.err != nil {
		f.err = inner.err
	}
	return value
}

// open begins a nested message. shut ends it by inserting its length, which is only known
// then, before what was appended since.
func open(b []byte, field protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return b, len(b)
}

func shut(b []byte, start int) []byte {
	size := len(b) - start
	var room [10]byte
	b = append(b, room[:protowire.SizeVarint(uint64(size))]...)
	copy(b[len(b)-size:], b[start:])
	protowire.AppendVarint(b[:start], uint64(size))
	return b
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendVarint(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, n)
}

func appendFixed64(b []byte, field protowire.Number, n uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, n)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendVarint(b, field, 1)
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	return appendVarint(b, field, uint64(Nanoseconds(t)))
}

// Nanoseconds returns a time as it is stored: nanoseconds since 1970, 0 for an unknown time.
// Times outside the years 1678 to 2261 do not fit and count as unknown.
func Nanoseconds(t time.Time) int64 {
	if year := t.Year(); year < 1678 || year > 2261 {
		return 0
	}
	return t.UnixNano()
}

// Time returns the time that [Nanoseconds] stored.
func Time(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
