package instance

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestEveryReasonIsDocumentedOnce(t *testing.T) {
	docs, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{ReasonCredentialsRefused: "ReasonCredentialsRefused"} // which callers are not told
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name := spec.Names[0].Name
		reason, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if seen[reason] == name {
			return true
		}
		if other := seen[reason]; other != "" {
			t.Errorf("%s and %s are both %s", other, name, reason)
		}
		seen[reason] = name
		if row := "\n| " + reason + " | "; !strings.Contains(string(docs), row) {
			t.Errorf("%s (%s) has no row in docs/errors.md", name, reason)
		}
		return true
	})
	if len(seen) < 30 {
		t.Errorf("found only %d reasons", len(seen))
	}
}
