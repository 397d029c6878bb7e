package ec2query

import "strings"

// glob is a value of a filter with wildcards: * stands for any characters, ? for one or
// none. Source: EC2 User Guide, "Filter your resources".
type glob []token

// token is one character, or a wildcard.
type token struct {
	char     rune
	wildcard bool
}

// parseGlob reads a value. A backslash takes the meaning from the character behind it;
// what is left is the text to compare with when there are no wildcards.
func parseGlob(value string) (pattern glob, text string) {
	var plain strings.Builder
	escaped, wild := false, false
	for _, char := range value {
		if char == '\\' && !escaped {
			escaped = true
			continue
		}
		t := token{char: char, wildcard: !escaped && (char == '*' || char == '?')}
		escaped = false
		wild = wild || t.wildcard
		pattern = append(pattern, t)
		plain.WriteRune(char)
	}
	if escaped {
		pattern = append(pattern, token{char: '\\'})
		plain.WriteByte('\\')
	}
	if !wild {
		return nil, plain.String()
	}
	return pattern, ""
}

// match reports whether the pattern stands for a text, in time proportional to the
// product of their lengths at worst.
func (g glob) match(text string) bool {
	// at[n] is whether what was read so far may be what the first n tokens stand for.
	at, next := make([]bool, len(g)+1), make([]bool, len(g)+1)
	at[0] = true
	g.skip(at)
	for _, char := range text {
		clear(next)
		alive := false
		for n, t := range g {
			switch {
			case !at[n]:
				continue
			case !t.wildcard:
				if t.char != char {
					continue
				}
				next[n+1] = true
			case t.char == '*':
				next[n] = true
			default:
				next[n+1] = true
			}
			alive = true
		}
		if !alive {
			return false
		}
		at, next = next, at
		g.skip(at)
	}
	return at[len(g)]
}

// skip lets wildcards stand for nothing.
func (g glob) skip(at []bool) {
	for n, t := range g {
		if t.wildcard && at[n] {
			at[n+1] = true
		}
	}
}
