package codec

import (
	"encoding/binary"
	"encoding/hex"
	"errors"

	"github.com/instanced/instanced/internal/instance"
)

// The first byte of a packed id: its form and, of a long one, the first digit.
const (
	longID  = 0x00 // 16 more digits in 8 bytes
	shortID = 0x10 // 8 digits in 4 bytes
	otherID = 0x20 // a length, and the text
)

var errPackedIDs = errors.New("its instance ids are not packed as they should be")

// AppendIDs appends ids in half the bytes of their digits.
func AppendIDs(b []byte, ids []instance.ID) []byte {
	for _, id := range ids {
		if packed, ok := appendDigits(b, string(id)); ok {
			b = packed
			continue
		}
		b = binary.AppendUvarint(append(b, otherID), uint64(len(id)))
		b = append(b, id...)
	}
	return b
}

// appendDigits appends an id that is "i-" and 8 or 17 digits, in lower case.
func appendDigits(b []byte, id string) ([]byte, bool) {
	form, digits := byte(shortID), ""
	switch {
	case len(id) == 10:
		digits = id[2:]
	case len(id) == 19:
		first := hexValue(id[2])
		if first < 0 {
			return b, false
		}
		form, digits = longID|byte(first), id[3:]
	default:
		return b, false
	}
	if id[:2] != "i-" {
		return b, false
	}
	packed := append(b, form)
	for n := 0; n < len(digits); n += 2 {
		high, low := hexValue(digits[n]), hexValue(digits[n+1])
		if high < 0 || low < 0 {
			return b, false
		}
		packed = append(packed, byte(high<<4|low))
	}
	return packed, true
}

// hexValue returns the value of a digit in lower case, or -1.
func hexValue(digit byte) int {
	switch {
	case '0' <= digit && digit <= '9':
		return int(digit - '0')
	case 'a' <= digit && digit <= 'f':
		return int(digit-'a') + 10
	}
	return -1
}

// DecodeIDs returns what AppendIDs has packed.
func DecodeIDs(b []byte) (ids []instance.ID, err error) {
	for len(b) > 0 {
		form := b[0]
		b = b[1:]
		size := uint64(0)
		switch {
		case form < shortID:
			size = 8
		case form == shortID:
			size = 4
		case form == otherID:
			n := 0
			if size, n = binary.Uvarint(b); n <= 0 {
				return nil, errPackedIDs
			}
			b = b[n:]
		default:
			return nil, errPackedIDs
		}
		if size > uint64(len(b)) {
			return nil, errPackedIDs
		}
		text := b[:size]
		b = b[size:]
		var id [19]byte
		switch {
		case form < shortID:
			copy(id[:], "i-")
			id[2] = "0123456789abcdef"[form]
			hex.Encode(id[3:], text)
			ids = append(ids, instance.ID(id[:]))
		case form == shortID:
			copy(id[:], "i-")
			hex.Encode(id[2:], text)
			ids = append(ids, instance.ID(id[:10]))
		default:
			ids = append(ids, instance.ID(text))
		}
	}
	return ids, nil
}
