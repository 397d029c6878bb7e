package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func FuzzTextOfOthersIsSafeForATerminal(f *testing.F) {
	for _, seed := range []string{"", "web-1", "\x1b[2J\n\r\t\x07", "\u202egnp.exe", "\u009b31m", "\u2028", "caf\u00e9 \U0001f600", "\xff\xfe", "\U000e0001", `\x1b`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		shown := Printable(text)
		if !utf8.ValidString(shown) || strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Printable(%q) is %q", text, shown)
		}
		if Printable(shown) != shown {
			t.Errorf("%q is changed when it is made printable again", shown)
		}
		raw, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		safe := printableJSON(raw)
		if strings.ContainsFunc(string(safe), unprintable) {
			t.Errorf("JSON of %q is %q", text, safe)
		}
		var before, after string
		if json.Unmarshal(raw, &before) != nil || json.Unmarshal(safe, &after) != nil || before != after {
			t.Errorf("JSON of %q reads %q, and was %q", text, after, before)
		}
	})
}
