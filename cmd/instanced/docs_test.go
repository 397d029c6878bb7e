package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const repository = "../.."

// fenced matches a block of a document: its language, and its lines.
var fenced = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$")

// blocks returns the fenced blocks of a document in the given language.
func blocks(t *testing.T, document, language string) (found []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, document))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range fenced.FindAllStringSubmatch(string(text), -1) {
		if block[1] == language {
			found = append(found, block[2])
		}
	}
	return found
}

// TestDocumentedCommandsPrintWhatTheDocumentsShow runs each command of each console block,
// in the order of its document and against one service for the document, as a reader would.
// Times, cursors, addresses and the like may differ; a command without output in the document
// is not compared.
func TestDocumentedCommandsPrintWhatTheDocumentsShow(t *testing.T) {
	documents, err := filepath.Glob(filepath.Join(repository, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, filepath.Join(repository, "README.md"))
	for _, path := range documents {
		document, _ := filepath.Rel(repository, path)
		consoles := blocks(t, document, "console")
		if len(consoles) == 0 {
			continue
		}
		t.Run(document, func(t *testing.T) {
			t.Parallel()
			shell := newDocumentShell(t)
			for _, console := range consoles {
				shell.run(t, console)
			}
		})
	}
}

// documentShell runs the commands of one document.
type documentShell struct {
	dir string
	env []string
	// as replaces the documented addresses with the ones of the running service.
	as *strings.Replacer
}

func newDocumentShell(t *testing.T) *documentShell {
	t.Helper()
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary is the program, if it is called like it.
	if err := os.Symlink(program, filepath.Join(dir, "instanced")); err != nil {
		t.Fatal(err)
	}
	s := &documentShell{dir: dir}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "INSTANCED_") && !strings.HasPrefix(variable, "AWS_") {
			s.env = append(s.env, variable)
		}
	}
	s.env = append(s.env, "PATH="+dir+":"+os.Getenv("PATH"), "INSTANCED_PRINCIPAL=ana@laptop", "GORACE=atexit_sleep_ms=0")

	said, stdout := io.Pipe()
	serve := exec.Command(filepath.Join(dir, "instanced"), "serve", "--listen", "127.0.0.1:0", "--ec2-listen", "127.0.0.1:0",
		"--data-dir", filepath.Join(dir, "data"))
	serve.Env, serve.Stdout = s.env, stdout
	log := &bytes.Buffer{}
	serve.Stderr = log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = serve.Wait() // killed below
		_ = stdout.Close()
	}()
	t.Cleanup(func() {
		_ = serve.Process.Kill()
		<-ended
	})
	var banner []byte
	for buf := make([]byte, 4096); !bytes.Contains(banner, []byte("Try:")); {
		n, err := said.Read(buf)
		if err != nil {
			<-ended
			t.Fatalf("the service ended: %s", log)
		}
		banner = append(banner, buf[:n]...)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	grpc, ec2 := servesOn.FindSubmatch(banner), speaksEC2On.FindSubmatch(banner)
	s.as = strings.NewReplacer("127.0.0.1:50051", string(grpc[1]), "http://127.0.0.1:8580", string(ec2[1]))
	s.env = append(s.env, "INSTANCED_SERVER="+string(grpc[1]))
	return s
}

// run runs the commands of a block, which begin with "$ ", and compares what they print.
func (s *documentShell) run(t *testing.T, console string) {
	t.Helper()
	const marker = "\x01"
	script := &strings.Builder{}
	var want [][]string
	for line := range strings.Lines(console) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			program := strings.Fields(command)[0]
			if _, err := exec.LookPath(program); err != nil && (program == "grpcurl" || program == "aws" || program == "jq") {
				t.Logf("NOT RUN, SINCE THERE IS NO %s HERE: %s", strings.ToUpper(program), command)
				t.SkipNow()
			}
			script.WriteString("printf '" + marker + "'\n" + s.as.Replace(command))
			want = append(want, []string{command})
			continue
		}
		if len(want) == 0 {
			t.Fatalf("this block begins without a command:\n%s", console)
		}
		want[len(want)-1] = append(want[len(want)-1], line)
	}
	shell := exec.Command("sh", "-c", script.String())
	shell.Dir, shell.Env = s.dir, s.env
	shell.WaitDelay = time.Second
	out, err := shell.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(exit, err)
	}
	for i, printed := range strings.Split(string(out), marker)[1:] {
		command, expected := want[i][0], strings.Join(want[i][1:], "")
		if expected == "" {
			continue
		}
		if diff := cmp.Diff(withoutVariables(expected), withoutVariables(printed)); diff != "" {
			t.Errorf("$ %s prints (-as documented +now):\n%s\nwhich is\n%s", command, diff, printed)
		}
	}
}

// documentVariables are what may differ from one run of a documented command to the next.
var documentVariables = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "<time>"},
	{regexp.MustCompile(`(?m)^ +\d+\.\d+s  `), "<elapsed>  "},
	{regexp.MustCompile(`"(cursor|endCursor|end_cursor|request_id|log_id)": ?"[^"]+"`), `"$1":"<$1>"`},
	{regexp.MustCompile(`\b198\.1[89]\.\d+\.\d+\b`), "<ip>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`\b(devel|v\d)[-.+\w]*`), "<version>"},
	{regexp.MustCompile(`\bgo1\.[\w.]+, \w+/\w+`), "<go>"},
	{regexp.MustCompile(`log       [0-9a-f]{32}, \d+ bytes`), "log       <log>"},
	{regexp.MustCompile(`: \d+\.\d of `), ": <level> of "},
	// Whichever learns of a change first.
	{regexp.MustCompile(`\b(simulator|reconcile)  `), "<noticed>  "},
}

func withoutVariables(text string) string {
	for _, v := range documentVariables {
		text = v.pattern.ReplaceAllString(text, v.instead)
	}
	return text
}

// TestDocumentedGoCompilesInAModuleOfItsOwn builds the Go of the documents as a reader does
// who puts it into a function of a new module.
func TestDocumentedGoCompilesInAModuleOfItsOwn(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := &strings.Builder{}
	program.WriteString(`package main

import (
	"context"
	"fmt"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

var ids []string

func main() { fmt.Println() }
`)
	for _, document := range []string{"README.md", "docs/client.md"} {
		for _, block := range blocks(t, document, "go") {
			program.WriteString("\nfunc _(ctx context.Context) error {\n" + block + "return nil\n}\n")
		}
	}
	write("main.go", program.String())
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	// The versions of this module, so that nothing has to be fetched.
	_, requirements, _ := strings.Cut(string(mod), "\n")
	requirements = regexp.MustCompile(`(?ms)^tool .*?^\)\n`).ReplaceAllString(requirements, "")
	write("go.mod", "module example.com/reader\n"+requirements+"\nrequire github.com/instanced/instanced v0.0.0\nreplace github.com/instanced/instanced => "+root+"\n")
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	write("go.sum", string(sums))
	build := exec.Command("go", "build", "-o", os.DevNull, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, program)
	}
}
