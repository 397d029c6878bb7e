package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/cli"
)

func TestMain(m *testing.M) {
	// Most of the time is spent waiting for programs and instances, not computing.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){"instanced": main, "instancedctl": cli.Main, etcdProgram: serveEtcd})
}

// TestStories runs the stories of testdata: each is what somebody does at a terminal,
// with the real binary and a real service. Beside the commands of testscript they have:
//
//	background NAME PROGRAM [ARG...]  run a program whose output grows in NAME.stdout and
//	                                  NAME.stderr
//	serve NAME [FLAG...]              run the service in the background, on a free port, in the
//	                                  directory data and with a log of text unless flags say otherwise;
//	                                  INSTANCED_SERVER is its address from then on, and
//	                                  EC2_ENDPOINT that of its EC2 endpoint, if it has one
//	until PATTERN FILE                wait until a line of a growing file matches
//	terminal NAME PROGRAM [ARG...]    run a program in the background on a terminal of 80 columns;
//	                                  what it shows grows in NAME.stdout
//	type NAME TEXT                    type a line on the terminal of a program
//	hangup NAME                       close the terminal of a program
//	signal NAME TERM|INT|HUP|KILL     send a signal to a program in the background
//	ended NAME STATUS                 wait for its end with this exit status; -1 is a signal
//	status N PROGRAM [ARG...]         run a program that must end with this exit status
//	[!] golden FILE GOLDEN            compare without regard to times, cursors and the like
//	json FILE                         there is nothing in it but JSON documents
//	cursor FILE                       CURSOR is the first cursor of a document from then on
//	capture NAME PATTERN FILE         the variable NAME is the group of PATTERN in a growing file
//	                                  from then on
//	helps PROGRAM VERB...             each verb has help with examples
func TestStories(t *testing.T) {
	runStories(t, "testdata")
}

func runStories(t *testing.T, dir string) {
	t.Helper()
	if signal.Ignored(syscall.SIGHUP) {
		// Under nohup: programs that are started here are not to inherit that.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("INSTANCED_PRINCIPAL", "alice")
			// Else each program that was built with the race detector takes a second to end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			programs := make(map[string]*running)
			env.Values[programsKey{}] = programs
			env.Defer(func() {
				for _, r := range programs {
					_ = r.cmd.Process.Kill() // has ended already, where the story says so
					<-r.done
				}
			})
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("there is no condition %q", name)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"background": cmdBackground, "serve": cmdServe, "until": cmdUntil, "signal": cmdSignal, "ended": cmdEnded,
			"terminal": cmdTerminal, "type": cmdType, "hangup": cmdHangup, "status": cmdStatus, "golden": cmdGolden, "json": cmdJSON, "cursor": cmdCursor, "capture": cmdCapture, "helps": cmdHelps,
		},
	})
}

// storyTimeout is how long anything in a story may take. Nothing takes that long unless
// it is broken.
const storyTimeout = 30 * time.Second

type programsKey struct{}

// running is a program in the background.
type running struct {
	cmd  *exec.Cmd
	done chan struct{}
	// pty is the other end of its terminal; nil without one.
	pty *os.File
}

func program(ts *testscript.TestScript, name string) *running {
	r, ok := ts.Value(programsKey{}).(map[string]*running)[name]
	if !ok {
		ts.Fatalf("there is no program %s in the background", name)
	}
	return r
}

func cmdBackground(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: background NAME PROGRAM [ARG...]")
	}
	name := args[0]
	cmd := storyCommand(ts, args[1:])
	stdout, err := os.Create(ts.MkAbs(name + ".stdout"))
	ts.Check(err)
	defer func() { _ = stdout.Close() }()
	stderr, err := os.Create(ts.MkAbs(name + ".stderr"))
	ts.Check(err)
	defer func() { _ = stderr.Close() }()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	startProgram(ts, name, cmd)
}

// storyCommand is a program of a story, with the environment of the story.
func storyCommand(ts *testscript.TestScript, args []string) *exec.Cmd {
	cmd := exec.Command(lookPath(ts, args[0]), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "WORK", "GORACE", "INSTANCED_PRINCIPAL", "INSTANCED_SERVER", "NO_COLOR",
		"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED",
	} {
		if value := ts.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

func startProgram(ts *testscript.TestScript, name string, cmd *exec.Cmd) *running {
	ts.Check(cmd.Start())
	r := &running{cmd: cmd, done: make(chan struct{})}
	ts.Value(programsKey{}).(map[string]*running)[name] = r
	go func() {
		defer close(r.done)
		_ = cmd.Wait() // its status is looked at by ended
	}()
	return r
}

func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: terminal NAME PROGRAM [ARG...]")
	}
	name := args[0]
	pty, tty, err := openTerminal(80)
	ts.Check(err)
	shown, err := os.Create(ts.MkAbs(name + ".stdout"))
	ts.Check(err)
	cmd := storyCommand(ts, args[1:])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	startProgram(ts, name, cmd).pty = pty
	ts.Check(tty.Close())
	go func() {
		defer func() { _ = shown.Close() }()
		_, _ = io.Copy(shown, pty) // ends with an error when the program does
	}()
}

// openTerminal returns the two ends of a new terminal of so many columns.
func openTerminal(columns uint16) (pty, tty *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	pty = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		return nil, nil, err
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	return pty, tty, err
}

func cmdType(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: type NAME TEXT")
	}
	_, err := io.WriteString(program(ts, args[0]).pty, args[1]+"\n")
	ts.Check(err)
}

func cmdHangup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hangup NAME")
	}
	ts.Check(program(ts, args[0]).pty.Close())
}

var (
	servesOn    = regexp.MustCompile(`serves gRPC on (\S+)`)
	speaksEC2On = regexp.MustCompile(`ec2 +(http://\S+);`)
)

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: serve NAME [FLAG...]")
	}
	name := args[0]
	cmdBackground(ts, false, append([]string{name, "instanced", "serve", "--listen", "127.0.0.1:0", "--data-dir", ts.MkAbs("data"), "--log-format", "text"}, args[1:]...))
	found := awaitMatch(ts, servesOn, name+".stdout", program(ts, name).done)
	if found == nil {
		said, _ := os.ReadFile(ts.MkAbs(name + ".stderr"))
		ts.Fatalf("the service %s ended:\n%s", name, said)
	}
	ts.Setenv("INSTANCED_SERVER", found[1])
	if found := speaksEC2On.FindStringSubmatch(ts.ReadFile(name + ".stdout")); found != nil {
		ts.Setenv("EC2_ENDPOINT", found[1])
	}
}

// awaitMatch waits until a growing file matches and returns what does, or nil when
// ended is closed first.
func awaitMatch(ts *testscript.TestScript, pattern *regexp.Regexp, file string, ended <-chan struct{}) []string {
	for deadline := time.Now().Add(storyTimeout); ; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(ts.MkAbs(file)) // may not be there yet
		if found := pattern.FindStringSubmatch(string(text)); found != nil {
			return found
		}
		select {
		case <-ended:
			return nil
		default:
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nothing in %s matches %s:\n%s", file, pattern, text)
		}
	}
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: until PATTERN FILE")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	awaitMatch(ts, pattern, args[1], nil)
}

func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: capture NAME PATTERN FILE")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	if pattern.NumSubexp() != 1 {
		ts.Fatalf("%s has not one group", pattern)
	}
	ts.Setenv(args[0], awaitMatch(ts, pattern, args[2], nil)[1])
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP}
	if neg || len(args) != 2 || signals[args[1]] == 0 {
		ts.Fatalf("usage: signal NAME TERM|INT|HUP|KILL")
	}
	ts.Check(program(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ended NAME STATUS")
	}
	r := program(ts, args[0])
	select {
	case <-r.done:
	case <-time.After(storyTimeout):
		ts.Fatalf("%s does not end", args[0])
	}
	if got := strconv.Itoa(r.cmd.ProcessState.ExitCode()); got != args[1] {
		said, _ := os.ReadFile(ts.MkAbs(args[0] + ".stderr"))
		ts.Fatalf("%s ended with %s, want %s:\n%s", args[0], got, args[1], said)
	}
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit status %d, want %s\n[stdout]\n%s[stderr]\n%s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// What differs from run to run.
var variables = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "<time>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT`), "<date> GMT"},
	{regexp.MustCompile(` +\d+\.\d+s  `), "  <elapsed>  "},
	{regexp.MustCompile(`"(cursor|end_cursor|request_id|client_token|log_id)": ?"[^"]+"`), `"$1": "<$1>"`},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	// Whichever learns of a change first.
	{regexp.MustCompile(`\b(simulator|reconcile)\b`), "<noticed>"},
}

func cmdGolden(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] golden FILE GOLDEN")
	}
	got, want := ts.ReadFile(args[0]), ts.ReadFile(args[1])
	for _, v := range variables {
		got = v.pattern.ReplaceAllString(got, v.instead)
	}
	if (got == want) == neg {
		ts.Fatalf("%s is, but for what varies:\n%s\nwant:\n%s", args[0], got, want)
	}
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: json FILE")
	}
	documents := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile(args[0]))))
	for n := 0; ; n++ {
		var document map[string]any
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) && n > 0 {
			return
		}
		if err != nil {
			ts.Fatalf("document %d of %s: %v", n+1, args[0], err)
		}
	}
}

var firstCursor = regexp.MustCompile(`"cursor": ?"([^"]+)"`)

func cmdCursor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: cursor FILE")
	}
	found := firstCursor.FindStringSubmatch(ts.ReadFile(args[0]))
	if found == nil {
		ts.Fatalf("there is no cursor in %s", args[0])
	}
	ts.Setenv("CURSOR", found[1])
}

func cmdHelps(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: helps PROGRAM VERB...")
	}
	program := args[0]
	for _, verb := range args[1:] {
		ts.Check(ts.Exec(program, verb, "--help"))
		if help := ts.ReadFile("stdout"); !strings.Contains(help, "Examples:\n  ") || !strings.Contains(help, program+" "+verb) {
			ts.Fatalf("the help of %s has no example:\n%s", verb, help)
		}
	}
}

// lookPath finds a program in the PATH of the story, which is not that of the test.
func lookPath(ts *testscript.TestScript, program string) string {
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	ts.Fatalf("there is no %s in PATH", program)
	return ""
}
