package ec2query

import (
	"math/bits"
	"strings"
)

// glob is a value of a filter with wildcards: * matches any characters, ? matches one or
// none. Source: EC2 User Guide, "Filter your resources".
//
// All its positions are matched at once, each as a bit: bit n is set while the characters read
// so far match the first n tokens. So matching takes time proportional to the length of the
// text, whatever the pattern is.
type glob struct {
	// tokens is how many there are, at most maxFilterLength.
	tokens int
	// chars holds the positions of each literal character, one the positions of ?, any the
	// positions of *, and skipped the positions of both, which may match nothing.
	chars             map[rune]positions
	one, any, skipped positions
}

// positions is a set of positions in a pattern.
type positions [maxFilterLength/64 + 1]uint64

func (p *positions) add(n int)      { p[n/64] |= 1 << (n % 64) }
func (p *positions) has(n int) bool { return p[n/64]&(1<<(n%64)) != 0 }

// parseGlob parses a value of at most maxFilterLength characters. A backslash escapes the next
// character. Without wildcards, it returns the literal text to compare with.
func parseGlob(value string) (pattern *glob, text string) {
	g := &glob{chars: make(map[rune]positions)}
	var plain strings.Builder
	literal := func(char rune) {
		at := g.chars[char]
		at.add(g.tokens)
		g.chars[char] = at
		g.tokens++
		plain.WriteRune(char)
	}
	escaped, wild := false, false
	for _, char := range value {
		switch {
		case escaped || char != '\\' && char != '*' && char != '?':
			escaped = false
			literal(char)
			continue
		case char == '\\':
			escaped = true
			continue
		case char == '*':
			g.any.add(g.tokens)
		default:
			g.one.add(g.tokens)
		}
		wild = true
		g.skipped.add(g.tokens)
		g.tokens++
	}
	if escaped {
		literal('\\')
	}
	if !wild {
		return nil, plain.String()
	}
	return g, ""
}

// match reports whether the pattern matches a text, and how many steps that took, one for each
// character.
func (g *glob) match(text string) (matches bool, steps int) {
	var at positions
	at.add(0)
	g.skip(&at)
	for _, char := range text {
		steps++
		here := g.chars[char]
		var alive, carry uint64
		for n := range at {
			moving := at[n] & (here[n] | g.one[n])
			at[n] = at[n]&g.any[n] | moving<<1 | carry
			carry = moving >> 63
			alive |= at[n]
		}
		if alive == 0 {
			return false, steps
		}
		g.skip(&at)
	}
	return at.has(g.tokens), steps + 1
}

// skip lets wildcards match nothing: from a position in a row of wildcards, all later positions
// up to the end of the row can be reached. Added to the row, a position carries
// over to that end, and changes the bits between, except the bits of other positions.
func (g *glob) skip(at *positions) {
	var carry uint64
	for n := range at {
		row := g.skipped[n]
		var sum uint64
		sum, carry = bits.Add64(row, at[n]&row, carry)
		at[n] |= sum ^ row
	}
}
