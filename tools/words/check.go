package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// finding is one name or phrase that should be another.
type finding struct {
	file    string
	line    int
	message string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.message) }

// words maps words that no identifier has to the standard term. A word is a part of an
// identifier: "looker" is one of lookerQueue.
var words = map[string]string{
	"absentee":  "negativeCache",
	"absentees": "negativeCache",
	"believe":   "freshness: current, superseded, stale",
	"believed":  "freshness: current, superseded, stale",
	"desk":      "dispatcher",
	"doubt":     "unresolved",
	"doubts":    "unresolved",
	"flight":    "inflight command",
	"flights":   "inflight tracker",
	"furnish":   "new",
	"greeting":  "banner",
	"hair":      "epsilon",
	"ledger":    "the fake's name, such as blockingBackend",
	"looker":    "refresher",
	"loudness":  "logLevel",
	"nobody":    "none",
	"owed":      "unresolved",
	"patience":  "maxHold, a timeout",
	"piles":     "byPool",
	"recital":   "inBubble",
	"restless":  "flakySubscriber",
	"sighting":  "observation",
	"stranger":  "unmanaged",
	"strangers": "unmanaged",
	"suspect":   "possibleCause",
	"suspects":  "possibleCauses",
	"tally":     "streamDigest",
	"vigil":     "liveCheck",
}

// phrases are what no comment, message, help text or page says, with what to do instead.
var phrases = []struct{ phrase, instead string }{
	{"all the same", `say "anyway", or leave it out`},
	{"at the most", `say "at most", or "maximum"`},
	{"nobody", `say who does not, or use the passive`},
	{"so long", `say "as long as", or name the duration`},
	{"so often", `say "interval", or "every …"`},
	{"that it should be", `say what is wrong: "malformed request"`},
	{"that it should not", `say what is wrong: "unexpected backend error"`},
	{"those of", `name the things again, or restructure`},
}

// separator is what may stand between two words of a phrase: a comment may continue on
// another line.
const separator = `\s+(?://\s*|\*\s+|>\s+)?`

var phrasePattern = func() *regexp.Regexp {
	alternatives := make([]string, len(phrases))
	for i, p := range phrases {
		alternatives[i] = strings.ReplaceAll(p.phrase, " ", separator)
	}
	return regexp.MustCompile(`(?i)\b(?:` + strings.Join(alternatives, "|") + `)\b`)
}()

var gap = regexp.MustCompile(separator)

// checkText checks a whole file for phrases.
func checkText(name string, source []byte) ([]finding, error) {
	return checkPhrases(name, source, 0, len(source)), nil
}

// checkTitle checks the first line of a file for phrases.
func checkTitle(name string, source []byte) ([]finding, error) {
	end := bytes.IndexByte(source, '\n')
	if end < 0 {
		end = len(source)
	}
	return checkPhrases(name, source, 0, end), nil
}

// checkPhrases checks source[begin:end].
func checkPhrases(name string, source []byte, begin, end int) []finding {
	var findings []finding
	for _, at := range phrasePattern.FindAllIndex(source[begin:end], -1) {
		found := gap.ReplaceAllString(strings.ToLower(string(source[begin+at[0]:begin+at[1]])), " ")
		for _, p := range phrases {
			if p.phrase == found {
				line := 1 + bytes.Count(source[:begin+at[0]], []byte("\n"))
				findings = append(findings, finding{name, line, fmt.Sprintf("%q: %s", found, p.instead)})
			}
		}
	}
	return findings
}

// callerHolds is what the comment of a function says that needs a lock held.
var callerHolds = regexp.MustCompile(`(?i)\bcallers?\s+(?:must\s+)?holds?\b`)

// checkGo checks the declarations, comments and strings of a Go file that is not generated.
func checkGo(name string, source []byte) ([]finding, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(file) {
		return nil, nil
	}
	var findings []finding
	text := func(n ast.Node) {
		findings = append(findings, checkPhrases(name, source, files.Position(n.Pos()).Offset, files.Position(n.End()).Offset)...)
	}
	for _, group := range file.Comments {
		text(group)
	}
	declared := func(ids ...*ast.Ident) {
		for _, id := range ids {
			if message := checkName(id.Name); message != "" {
				findings = append(findings, finding{name, files.Position(id.Pos()).Line, message})
			}
		}
	}
	declared(file.Name)
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			declared(n.Name)
			if !strings.HasSuffix(n.Name.Name, "Locked") && callerHolds.MatchString(n.Doc.Text()) {
				findings = append(findings, finding{name, files.Position(n.Pos()).Line, n.Name.Name + ": a function whose caller holds a lock ends in …Locked"})
			}
		case *ast.TypeSpec:
			declared(n.Name)
		case *ast.ValueSpec:
			declared(n.Names...)
		case *ast.Field:
			declared(n.Names...)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, left := range n.Lhs {
					if id, ok := left.(*ast.Ident); ok {
						declared(id)
					}
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				for _, left := range []ast.Expr{n.Key, n.Value} {
					if id, ok := left.(*ast.Ident); ok {
						declared(id)
					}
				}
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING {
				text(n)
			}
		}
		return true
	})
	slices.SortStableFunc(findings, func(a, b finding) int { return a.line - b.line })
	return findings, nil
}

// checkName returns what is wrong with an identifier, or "".
func checkName(name string) string {
	parts := split(name)
	switch last := len(parts) - 1; {
	case parts[0] == "most":
		return name + ": an upper bound is max…"
	case parts[0] == "least":
		return name + ": a lower bound is min…"
	case last > 0 && parts[last] == "every":
		return name + ": the time between two runs is a …Interval"
	}
	for i, part := range parts {
		if part == "flight" && i > 0 && parts[i-1] == "in" {
			continue
		}
		if standard := words[part]; standard != "" {
			return fmt.Sprintf("%s: the standard term for %q is %s", name, part, standard)
		}
	}
	return ""
}

// split returns the words of an identifier in lower case.
func split(name string) []string {
	var parts []string
	begin := 0
	runes := []rune(name)
	for i := range runes {
		upper := unicode.IsUpper(runes[i])
		if i > begin && (runes[i] == '_' || upper && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))) {
			parts = append(parts, string(runes[begin:i]))
			begin = i
		}
	}
	parts = append(parts, string(runes[begin:]))
	for i, part := range parts {
		parts[i] = strings.ToLower(strings.Trim(part, "_"))
	}
	return parts
}
