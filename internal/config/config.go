package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxSize is the maximum size of a file, in bytes.
	MaxSize = 1 << 20
	// maxProblems bounds the problems that are reported for a file.
	maxProblems = 100
	// maxQuoted bounds the characters of the file that a problem repeats.
	maxQuoted = 80
)

// Kind is the type that the value of a setting has in the file.
type Kind int

const (
	// Text is a string.
	Text Kind = iota
	// Number is a number that is not quoted.
	Number
	// Quantity is a string or a number, such as a size or a duration.
	Quantity
	// Switch is true or false.
	Switch
	// List is a sequence of strings.
	List
)

// String describes a value of the kind.
func (k Kind) String() string {
	switch k {
	case Text:
		return "text"
	case Number:
		return "a number"
	case Quantity:
		return "a number or text"
	case Switch:
		return "true or false"
	case List:
		return "a list"
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// Setting is a setting that a file may have.
type Setting struct {
	// Key is its path in the file, with dots, such as "log.level". No key is the beginning
	// of another.
	Key string
	// Alias is another name by which the setting is known elsewhere, such as that of its
	// flag. It is not accepted in the file, only understood in order to suggest Key.
	Alias string
	Kind  Kind
	// What describes the value in messages, such as "a duration"; by default the Kind does.
	What string
	// Secret is whether messages must not repeat the value.
	Secret bool
	// Accept returns an error that says what is accepted, unless the value is. Only a List
	// has other than one text.
	Accept func(texts []string) error
}

// Value is the value of a setting in a file.
type Value struct {
	Key string
	// Texts are the value as text: one, or the items of a List.
	Texts []string
	// Line and Column are where the value begins, from 1.
	Line, Column int
}

// Problem is something that is wrong with a file.
type Problem struct {
	File string
	// Line and Column are where it is, from 1; Column is 0 if only the line is known, and Line
	// is 0 if it concerns the whole file.
	Line, Column int
	Message      string
}

// Error returns the position and the message, such as "instanced.yaml:3:5: unknown key ...".
func (p *Problem) Error() string {
	switch {
	case p.Line == 0:
		return p.File + ": " + p.Message
	case p.Column == 0:
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// Problems are all problems of a file, in its order.
type Problems []*Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// Read returns the contents of a file of at most MaxSize bytes, or an error that is one
// sentence with its name.
func Read(name string) ([]byte, error) {
	// Opening a named pipe would wait for a writer, and reading one would take the settings of a
	// writer that is not there for an empty file.
	if info, err := os.Stat(name); err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		return nil, unreadable(name, errors.New("it is not a regular file"))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, unreadable(name, err)
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	switch {
	case err != nil:
		return nil, unreadable(name, err)
	case len(data) > MaxSize:
		return nil, fmt.Errorf("the configuration file %s is larger than %d MiB", name, MaxSize>>20)
	}
	return data, nil
}

func unreadable(name string, err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("cannot read the configuration file %s: %w", name, err)
}

// Parse returns the values of a file in its order. A file that is empty, or has nothing but
// comments, has none. The error is [Problems]; name is how they call the file.
func Parse(name string, data []byte, settings []Setting) ([]Value, error) {
	p := &parser{file: name, root: &group{}}
	for i := range settings {
		p.root.add(strings.Split(settings[i].Key, "."), &settings[i])
	}
	p.settings = settings
	if document := p.document(data); document != nil && len(p.problems) == 0 {
		p.group(document.Content[0], p.root, "")
	}
	if len(p.problems) > 0 {
		slices.SortStableFunc(p.problems, func(a, b *Problem) int { return comparePositions(a, b) })
		return nil, p.problems[:min(len(p.problems), maxProblems)]
	}
	return p.values, nil
}

func comparePositions(a, b *Problem) int {
	if a.Line != b.Line {
		return a.Line - b.Line
	}
	return a.Column - b.Column
}

// group is a mapping that a file may have: settings and further groups by their key.
type group struct {
	names  []string
	groups map[string]*group
	leaves map[string]*Setting
}

func (g *group) add(path []string, s *Setting) {
	name := path[0]
	if !slices.Contains(g.names, name) {
		g.names = append(g.names, name)
	}
	if len(path) == 1 {
		if g.leaves == nil {
			g.leaves = make(map[string]*Setting)
		}
		g.leaves[name] = s
		return
	}
	if g.groups == nil {
		g.groups = make(map[string]*group)
	}
	if g.groups[name] == nil {
		g.groups[name] = &group{}
	}
	g.groups[name].add(path[1:], s)
}

type parser struct {
	file     string
	settings []Setting
	root     *group
	values   []Value
	problems Problems
}

func (p *parser) problem(line, column int, format string, args ...any) {
	p.problems = append(p.problems, &Problem{File: p.file, Line: line, Column: column, Message: fmt.Sprintf(format, args...)})
}

func (p *parser) problemAt(n *yaml.Node, format string, args ...any) {
	p.problem(n.Line, n.Column, format, args...)
}

// document returns the one document of a file, or nil if it has none or cannot be read.
func (p *parser) document(data []byte) *yaml.Node {
	if len(data) > MaxSize {
		p.problem(0, 0, "the file is larger than %d MiB", MaxSize>>20)
		return nil
	}
	p.characters(data)
	if len(p.problems) > 0 {
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := d.Decode(&first); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		p.syntax(err, data)
		return nil
	}
	switch err := d.Decode(&second); {
	case err == nil:
		p.problemAt(&second, "a second document begins here; the file must have only one")
	case !errors.Is(err, io.EOF):
		p.syntax(err, data)
	}
	return &first
}

// characters looks for what no line of a file may have.
func (p *parser) characters(data []byte) {
	line := 0
	for text := range bytes.Lines(data) {
		line++
		indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
		if tab := bytes.IndexByte(indent, '\t'); tab >= 0 && len(bytes.TrimSpace(text)) > 0 {
			p.problem(line, tab+1, "this line is indented with a tab; YAML is indented with spaces")
		}
		for i, r := range string(text) {
			switch {
			case r == utf8.RuneError && !utf8.FullRune(text[i:]), r == utf8.RuneError && !bytes.HasPrefix(text[i:], []byte("\uFFFD")):
				p.problem(line, i+1, "this is not UTF-8")
			case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7f:
				p.problem(line, i+1, "this is a control character (%U)", r)
			default:
				continue
			}
			break // one for a line is enough
		}
		if len(p.problems) >= maxProblems {
			return
		}
	}
}

var (
	syntaxLine    = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
	// inParser matches the errors of the library's parser, whose lines count from 0. If inBlock
	// matches as well, the line is where the block with the error begins.
	inParser = regexp.MustCompile(`^did not find expected (<|'-' indicator|key|',' or|node content)`)
	inBlock  = regexp.MustCompile(`^did not find expected ('-' indicator|key|',' or)`)
)

// syntax adds the problem of an error of the YAML library.
func (p *parser) syntax(err error, data []byte) {
	text, line := err.Error(), 0
	if found := syntaxLine.FindStringSubmatch(text); found != nil {
		text = text[len(found[0]):]
		line, _ = strconv.Atoi(found[1]) // 0 without one
	}
	if found := unknownAnchor.FindStringSubmatch(text); found != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+found[1]))
		p.problem(bytes.Count(before, []byte("\n"))+1, 0, "aliases (*%s) are not accepted; write the value out", quotable(found[1]))
		return
	}
	if inParser.MatchString(text) {
		line++
	}
	if inBlock.MatchString(text) {
		text += " in what begins here"
	}
	p.problem(line, 0, "this is not YAML: %s", text)
}

// plain reports whether a node has nothing of what is not accepted anywhere.
func (p *parser) plain(n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		p.problemAt(n, "aliases (*%s) are not accepted; write the value out", quotable(n.Value))
	case n.Anchor != "":
		p.problemAt(n, "anchors (&%s) are not accepted; write the value out where it is needed", quotable(n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		p.problemAt(n, "tags (%s) are not accepted", quotable(n.Tag))
	default:
		return true
	}
	return false
}

// group reads a mapping.
func (p *parser) group(n *yaml.Node, g *group, path string) {
	if !p.plain(n) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a group of which everything is commented out
	}
	if n.Kind != yaml.MappingNode {
		where := "the file"
		if path != "" {
			where = path
		}
		p.problemAt(n, "%s must have keys below it (%s), not %s", where, strings.Join(g.names, ", "), describe(n))
		return
	}
	lines := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !p.plain(key) {
			continue
		}
		if key.Kind != yaml.ScalarNode {
			p.problemAt(key, "a key must be a word, not %s", describe(key))
			continue
		}
		full := join(path, key.Value)
		if line, ok := lines[key.Value]; ok {
			p.problemAt(key, "the key %q is there already, in line %d", quotable(full), line)
			continue
		}
		lines[key.Value] = key.Line
		switch {
		case g.leaves[key.Value] != nil:
			p.value(value, g.leaves[key.Value])
		case g.groups[key.Value] != nil:
			p.group(value, g.groups[key.Value], full)
		default:
			p.problemAt(key, "unknown key %q%s", quotable(full), p.suggestion(g, path, key.Value))
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// suggestion returns the key that was probably meant: one of the same group, or one that has
// this name elsewhere.
func (p *parser) suggestion(g *group, path, key string) string {
	const meant = "; did you mean %q?"
	lower := strings.ReplaceAll(strings.ToLower(key), "_", "-")
	if len(key) > maxQuoted {
		return ""
	}
	if slices.Contains(g.names, lower) {
		return fmt.Sprintf(meant, join(path, lower))
	}
	for _, s := range p.settings {
		if s.Key == join(path, lower) { // with a dot, or it would be known
			dot := strings.LastIndexByte(s.Key, '.')
			return fmt.Sprintf("; write %q below %q", s.Key[dot+1:], s.Key[:dot])
		}
		if s.Alias == lower || s.Key == lower || strings.HasSuffix(s.Key, "."+lower) {
			return fmt.Sprintf(meant, s.Key)
		}
	}
	if name, ok := Nearest(lower, g.names); ok {
		return fmt.Sprintf(meant, join(path, name))
	}
	return "; the keys here are " + strings.Join(g.names, ", ")
}

// value reads the value of a setting.
func (p *parser) value(n *yaml.Node, s *Setting) {
	if !p.plain(n) {
		return
	}
	items := []*yaml.Node{n}
	if s.Kind == List && n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	texts := make([]string, 0, len(items))
	for _, item := range items {
		if item != n && !p.plain(item) {
			return
		}
		if !s.Kind.accepts(item) {
			key, want := s.Key, cmp.Or(s.What, s.Kind.String())
			if item != n {
				key, want = "an item of "+key, Text.String()
			}
			got := describe(item)
			if s.Secret {
				got = "something else; put it in quotes"
			}
			p.problemAt(item, "%s must be %s, not %s", key, want, got)
			return
		}
		texts = append(texts, item.Value)
	}
	if err := s.Accept(texts); err != nil {
		p.problemAt(n, "%s: %v", s.Key, err)
		return
	}
	p.values = append(p.values, Value{Key: s.Key, Texts: texts, Line: n.Line, Column: n.Column})
}

// accepts reports whether a value, or an item of a list, has the right type.
func (k Kind) accepts(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	tag := n.Tag
	switch k {
	case Text, List:
		return tag == "!!str"
	case Number:
		return tag == "!!int" || tag == "!!float"
	case Quantity:
		return tag == "!!int" || tag == "!!float" || tag == "!!str"
	case Switch:
		return tag == "!!bool"
	}
	return false
}

// describe says what a node is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case n.Tag == "!!null":
		return "empty"
	case n.Tag == "!!str":
		return fmt.Sprintf("the text %q", quotable(n.Value))
	}
	return fmt.Sprintf("%s, which YAML takes for %s", quotable(n.Value), typeNames[n.Tag])
}

var typeNames = map[string]string{
	"!!bool": "true or false", "!!int": "a number", "!!float": "a number", "!!timestamp": "a time", "!!merge": "a merge key",
}

// quotable returns the beginning of a text that may be long.
func quotable(text string) string {
	if runes := []rune(text); len(runes) > maxQuoted {
		return string(runes[:maxQuoted]) + "..."
	}
	return text
}

// maxEdits is the maximum edit distance at which a misspelt name is suggested for another.
const maxEdits = 3

// Nearest returns the name that a misspelt one probably stands for, if there is one.
func Nearest(misspelt string, names []string) (nearest string, ok bool) {
	best := min(maxEdits, max(1, len(misspelt)/2)) + 1
	for _, name := range names {
		if d := distance(name, misspelt); d < best {
			best, nearest, ok = d, name, true
		}
	}
	return nearest, ok
}

// distance is the number of letters to insert, remove or replace to get from one word
// to another.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
