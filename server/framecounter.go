package server

import "encoding/binary"

// Types and flags of HTTP/2's frames (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameResetStream  = 0x3
	frameWindowUpdate = 0x8
	flagEndStream     = 0x1

	prefaceBytes     = 24
	frameHeaderBytes = 9
)

// smallDataBytes is the size below which a DATA frame is counted, because it carries so little
// of a request: a megabyte in pieces of one byte takes as much memory as a hundred megabytes.
const smallDataBytes = 256

// frames counts frames by kind.
type frames struct {
	headers int
	cancels int
	updates int
	// others are all other frames except data of a sensible size.
	others int
}

// frameCounter counts the frames of a client by what they cost the server. It reads only
// their headers; the transport rejects what is not HTTP/2.
type frameCounter struct {
	seen frames
	// preface is how much of the client's preface was read.
	preface int
	// header holds the part of a frame's header that was read, payload is how much of the
	// frame is still to come.
	header  [frameHeaderBytes]byte
	partial int
	payload int
}

// take returns the counts since it was last called.
func (c *frameCounter) take() frames {
	seen := c.seen
	c.seen = frames{}
	return seen
}

// read counts what is in p.
func (c *frameCounter) read(p []byte) {
	if c.preface < prefaceBytes {
		n := min(len(p), prefaceBytes-c.preface)
		c.preface += n
		p = p[n:]
	}
	for len(p) > 0 {
		if c.payload > 0 {
			n := min(len(p), c.payload)
			c.payload -= n
			p = p[n:]
			continue
		}
		n := copy(c.header[c.partial:], p)
		c.partial += n
		p = p[n:]
		if c.partial == frameHeaderBytes {
			c.partial = 0
			c.payload = c.count()
		}
	}
}

// count counts the frame with this header and returns the length of its payload.
func (c *frameCounter) count() int {
	length := int(binary.BigEndian.Uint32(c.header[:4]) >> 8)
	kind, flags := c.header[3], c.header[4]
	switch kind {
	case frameData:
		if length < smallDataBytes && flags&flagEndStream == 0 {
			c.seen.others++
		}
	case frameHeaders:
		c.seen.headers++
	case frameResetStream:
		c.seen.cancels++
	case frameWindowUpdate:
		c.seen.updates++
	default:
		c.seen.others++
	}
	return length
}
