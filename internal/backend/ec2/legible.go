package ec2

import (
	"bytes"
	"regexp"
	"strconv"
	"unicode/utf8"
)

// reference matches numeric character references.
var reference = regexp.MustCompile(`&#(?:[0-9]{1,9}|x[0-9A-Fa-f]{1,8});`)

// legible replaces characters that XML 1.0 does not allow by U+FFFD. Anyone who may tag an
// instance may put one into a tag, and the SDK would then reject the whole response.
func legible(document []byte) []byte {
	document = reference.ReplaceAllFunc(document, func(r []byte) []byte {
		digits, base := r[2:len(r)-1], 10
		if digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		if n, err := strconv.ParseUint(string(digits), base, 32); err == nil && n <= utf8.MaxRune && allowed(rune(n)) {
			return r
		}
		return []byte("\uFFFD")
	})
	if legibleAlready(document) {
		return document
	}
	return bytes.Map(func(r rune) rune {
		if !allowed(r) {
			return utf8.RuneError
		}
		return r
	}, document)
}

func legibleAlready(document []byte) bool {
	return utf8.Valid(document) && bytes.IndexFunc(document, func(r rune) bool { return !allowed(r) }) < 0
}

// allowed reports whether XML 1.0 allows a character. Source: XML 1.0, section 2.2.
func allowed(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune
}
