package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// testSettings are three levels deep and of every kind.
func testSettings() []Setting {
	accept := func([]string) error { return nil }
	return []Setting{
		{Key: "listen", Alias: "listen", Kind: Text, Accept: accept},
		{Key: "log.level", Alias: "log-level", Kind: Text, Accept: func(texts []string) error {
			if texts[0] != "debug" && texts[0] != "info" {
				return fmt.Errorf("%q is not one of debug, info", texts[0])
			}
			return nil
		}},
		{Key: "journal.retention", Alias: "retention", Kind: Quantity, Accept: accept},
		{Key: "journal.etcd.endpoints", Alias: "etcd-endpoints", Kind: List, Accept: accept},
		{Key: "journal.etcd.prefix", Alias: "etcd-prefix", Kind: Text, Accept: accept},
		{Key: "limits.max-streams", Alias: "max-streams", Kind: Number, Accept: accept},
		{Key: "simulator.throttle", Alias: "sim-throttle", Kind: Switch, Accept: accept},
	}
}

func TestParseReturnsValuesWithTheirPositions(t *testing.T) {
	t.Parallel()
	got, err := Parse("x.yaml", []byte(`# comment
listen: 127.0.0.1:1
log: {level: debug}
journal:
  retention: 24h
  etcd:
    endpoints:
      - http://a
      - "http://b"
limits:
  max-streams: 12
simulator:
  throttle: true
`), testSettings())
	if err != nil {
		t.Fatal(err)
	}
	want := []Value{
		{"listen", []string{"127.0.0.1:1"}, 2, 9},
		{"log.level", []string{"debug"}, 3, 14},
		{"journal.retention", []string{"24h"}, 5, 14},
		{"journal.etcd.endpoints", []string{"http://a", "http://b"}, 8, 7},
		{"limits.max-streams", []string{"12"}, 11, 16},
		{"simulator.throttle", []string{"true"}, 13, 13},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestAFileWithoutValuesIsFine(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\n", "# comment\n", "---\n", "log:\n", "{}", "log: {}\njournal:\n  etcd:\n", "\ufeff# byte order mark\n"} {
		values, err := Parse("x.yaml", []byte(text), testSettings())
		if err != nil || len(values) > 0 {
			t.Errorf("%q: %v, %v", text, values, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	bomb := &strings.Builder{}
	bomb.WriteString("a: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c <= 'i'; c++ {
		fmt.Fprintf(bomb, "%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 9), ","))
	}
	for name, test := range map[string]struct{ text, want string }{
		"unknown key": {"lisen: x\n", `x.yaml:1:1: unknown key "lisen"; did you mean "listen"?`},
		"unknown key three levels down": {
			"journal:\n  etcd:\n    endpoint: [http://a]\n",
			`x.yaml:3:5: unknown key "journal.etcd.endpoint"; did you mean "journal.etcd.endpoints"?`,
		},
		"unlike any key":         {"log:\n  colour: red\n", `x.yaml:2:3: unknown key "log.colour"; the keys here are level`},
		"another level":          {"retention: 24h\n", `x.yaml:1:1: unknown key "retention"; did you mean "journal.retention"?`},
		"name of a flag":         {"log-level: debug\n", `x.yaml:1:1: unknown key "log-level"; did you mean "log.level"?`},
		"dots":                   {"log.level: debug\n", `x.yaml:1:1: unknown key "log.level"; write "level" below "log"`},
		"dots below":             {"journal: {etcd.endpoints: [http://a]}\n", `x.yaml:1:11: unknown key "journal.etcd.endpoints"; write "endpoints" below "journal.etcd"`},
		"wrong case":             {"Log: {level: debug}\n", `x.yaml:1:1: unknown key "Log"; did you mean "log"?`},
		"wrong case below":       {"log: {Level: debug}\n", `x.yaml:1:7: unknown key "log.Level"; did you mean "log.level"?`},
		"underscore":             {"limits: {max_streams: 1}\n", `x.yaml:1:10: unknown key "limits.max_streams"; did you mean "limits.max-streams"?`},
		"repeated key":           {"listen: x\nlog: {level: info}\nlisten: y\n", `x.yaml:3:1: the key "listen" is there already, in line 1`},
		"repeated key below":     {"log: {level: info, level: debug}\n", `x.yaml:1:20: the key "log.level" is there already, in line 1`},
		"repeated group":         {"log: {level: info}\nlog: {}\n", `x.yaml:2:1: the key "log" is there already, in line 1`},
		"tab":                    {"log:\n\tlevel: info\n", `x.yaml:2:1: this line is indented with a tab; YAML is indented with spaces`},
		"tab after a space":      {"log:\n \tlevel: info\n", `x.yaml:2:2: this line is indented with a tab; YAML is indented with spaces`},
		"two documents":          {"listen: x\n---\nlisten: y\n", `x.yaml:2:1: a second document begins here; the file must have only one`},
		"bad second document":    {"listen: x\n---\n}\n", `x.yaml:3: this is not YAML: did not find expected node content`},
		"anchor":                 {"listen: &a x\n", `x.yaml:1:9: anchors (&a) are not accepted; write the value out where it is needed`},
		"alias":                  {"listen: *a\n", `x.yaml:1: aliases (*a) are not accepted; write the value out`},
		"anchor bomb":            {bomb.String(), `x.yaml:1:1: unknown key "a"; the keys here are listen, log, journal, limits, simulator`},
		"anchor bomb as a value": {"journal: &a {etcd: &b [*a, *a]}\n", `x.yaml:1:10: anchors (&a) are not accepted`},
		"tag":                    {"listen: !!binary eA==\n", `x.yaml:1:9: tags (!!binary) are not accepted`},
		"merge key":              {"log:\n  <<: {level: info}\n", `x.yaml:2:3: unknown key "log.<<"`},
		"key that is a list":     {"? [a]\n: b\n", `x.yaml:1:3: a key must be a word, not a list`},
		"text for a group":       {"log: debug\n", `x.yaml:1:6: log must have keys below it (level), not the text "debug"`},
		"list for a file":        {"- listen\n", `x.yaml:1:1: the file must have keys below it (listen, log, journal, limits, simulator), not a list`},
		"number for text":        {"listen: 50051\n", `x.yaml:1:9: listen must be text, not 50051, which YAML takes for a number`},
		"keys for text":          {"listen: {port: 1}\n", `x.yaml:1:9: listen must be text, not keys with values`},
		"text for a number":      {"limits: {max-streams: \"12\"}\n", `x.yaml:1:23: limits.max-streams must be a number, not the text "12"`},
		"text for a switch":      {"simulator: {throttle: yes}\n", `x.yaml:1:23: simulator.throttle must be true or false, not the text "yes"`},
		"number in a list":       {"journal: {etcd: {endpoints: [http://a, 1]}}\n", `x.yaml:1:40: an item of journal.etcd.endpoints must be text, not 1, which YAML takes for a number`},
		"list in a list":         {"journal: {etcd: {endpoints: [[http://a]]}}\n", `x.yaml:1:30: an item of journal.etcd.endpoints must be text, not a list`},
		"no value":               {"listen:\n", `x.yaml:1:8: listen must be text, not empty`},
		"value":                  {"log:\n  level: loud\n", `x.yaml:2:10: log.level: "loud" is not one of debug, info`},
		"syntax":                 {"listen: x\nlog: {level: info\n", `x.yaml:2: this is not YAML: did not find expected ',' or '}' in what begins here`},
		"not UTF-8":              {"listen: x\nlog: \xff\n", `x.yaml:2:6: this is not UTF-8`},
		"control character":      {"listen: x\x00\n", `x.yaml:1:10: this is a control character (U+0000)`},
		"too large":              {strings.Repeat("#", MaxSize+1), `x.yaml: the file is larger than 1 MiB`},
		"too deep":               {strings.Repeat("{log: ", 20000), `x.yaml:`},
		"several": {
			"lisen: x\nlog:\n  level: loud\n  level: info\n",
			"x.yaml:1:1: unknown key \"lisen\"; did you mean \"listen\"?\n" +
				"x.yaml:3:10: log.level: \"loud\" is not one of debug, info\n" +
				"x.yaml:4:3: the key \"log.level\" is there already, in line 3",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			values, err := Parse("x.yaml", []byte(test.text), testSettings())
			if err == nil {
				t.Fatalf("accepted: %v", values)
			}
			if !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
		})
	}
}

func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	text := &strings.Builder{}
	for i := range 1000 {
		text.WriteString("k" + strconv.Itoa(i) + ": 1\n")
	}
	_, err := Parse("x.yaml", []byte(text.String()), testSettings())
	problems, ok := errors.AsType[Problems](err)
	if !ok || len(problems) != maxProblems {
		t.Errorf("%d problems", len(problems))
	}
	_, err = Parse("x.yaml", []byte(strings.Repeat("k", 100_000)+": 1\n"), testSettings())
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("a long key: %d bytes", len(err.Error()))
	}
}

func TestReadSaysWhyAFileCannotBeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		pipe:                               "cannot read the configuration file " + pipe + ": it is not a regular file",
		"/dev/zero":                        "the configuration file /dev/zero is larger than 1 MiB",
		filepath.Join(dir, "missing.yaml"): "cannot read the configuration file " + filepath.Join(dir, "missing.yaml") + ": no such file or directory",
		dir:                                "cannot read the configuration file " + dir + ": is a directory",
		large:                              "the configuration file " + large + " is larger than 1 MiB",
	} {
		if _, err := Read(name); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// FuzzParse: whatever the file is, there are values of known settings with positions inside
// the file, or problems that each are one line and not long.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "listen: x", "log: {level: debug}", "log:\n\tlevel: x", "a: &a [*a]", "---\n---\n", "{", "? [a]\n: b", "x: !!binary eA==",
		"journal: {etcd: {endpoints: [a, b], prefix: c}}", "limits: {max-streams: 0x10}", "\xff\xfe", "listen: |\n  x\n", "log: {level: info, level: info}",
		"<<: {listen: x}", "listen: \"\\u0000\"", "%YAML 1.1\n---\nlisten: x", "listen: >-\n a\n b", "# x\n\u2028listen: x",
	} {
		f.Add([]byte(text))
	}
	known := make(map[string]bool)
	for _, s := range testSettings() {
		known[s.Key] = true
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := Parse("x.yaml", data, testSettings())
		// YAML has more line breaks than bytes.Lines.
		lines := strings.Count(strings.NewReplacer("\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n").Replace(string(data)), "\n") + 1
		if err != nil {
			problems, ok := errors.AsType[Problems](err)
			if !ok || len(problems) == 0 || len(problems) > maxProblems || values != nil {
				t.Fatalf("%T, %d values", err, len(values))
			}
			for _, p := range problems {
				if p.Message == "" || strings.Contains(p.Message, "\n") || len(p.Message) > 1000 || p.Line < 0 || p.Line > lines+1 {
					t.Errorf("%d:%d: %q", p.Line, p.Column, p.Message)
				}
			}
			return
		}
		seen := make(map[string]bool)
		for _, v := range values {
			if !known[v.Key] || seen[v.Key] || v.Line < 1 || v.Line > lines || v.Column < 1 {
				t.Errorf("%+v", v)
			}
			seen[v.Key] = true
		}
	})
}
