package soak_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/addrtest"
)

// environment is that of all processes, without what is meant for the tests.
var environment = append(
	slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "INSTANCED_") || strings.HasPrefix(v, "AWS_") }),
	// The simulator takes any credentials.
	"AWS_ACCESS_KEY_ID=AKIAINSTANCED", "AWS_SECRET_ACCESS_KEY=secret", "AWS_EC2_METADATA_DISABLED=true",
	// Else each program that was built with the race detector takes a second to end.
	"GORACE=atexit_sleep_ms=0")

// process is the service in a process of its own, on an address that it keeps when it
// is started again.
type process struct {
	t       *testing.T
	address string
	args    []string
	dir     string // of what it says

	mu      sync.Mutex
	running *life
	starts  int
}

// life is one run of a process.
type life struct {
	cmd            *exec.Cmd
	stdout, stderr string
	began          time.Time
	// ended is closed when the process has; its status is known then.
	ended chan struct{}
	// meant is whether the test ends it. Guarded by the lock of the process.
	meant bool
}

// newProcess prepares a process with the flags of serve, beside those that all have.
func newProcess(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, address: addrtest.Free(t), dir: t.TempDir()}
	p.args = append([]string{"serve", "--listen", p.address, "--log-format", "json"}, args...)
	t.Cleanup(func() {
		p.kill()
		p.complain()
	})
	return p
}

// start runs the program, and does not wait for anything.
func (p *process) start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starts++
	r := &life{
		cmd:    exec.Command(program, p.args...),
		stdout: filepath.Join(p.dir, fmt.Sprintf("%d.stdout", p.starts)),
		stderr: filepath.Join(p.dir, fmt.Sprintf("%d.stderr", p.starts)),
		began:  time.Now(),
		ended:  make(chan struct{}),
	}
	stdout, err := os.Create(r.stdout)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = stdout.Close() }()
	stderr, err := os.Create(r.stderr)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = stderr.Close() }()
	r.cmd.Stdout, r.cmd.Stderr = stdout, stderr
	r.cmd.Env = environment
	if err := r.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.running = r
	go func() {
		_ = r.cmd.Wait() // whoever cares looks at the status
		p.mu.Lock()
		meant := r.meant
		p.mu.Unlock()
		if !meant {
			p.t.Errorf("the process on %s ended by itself: %v\n%s", p.address, r.cmd.ProcessState, p.said(r, 30))
		}
		close(r.ended)
	}()
}

// ready waits until the process says that it serves.
func (p *process) ready() {
	p.t.Helper()
	r := p.current()
	await(p.t, "the process on "+p.address+" is ready", func() bool {
		select {
		case <-r.ended:
			p.t.Fatalf("the process on %s ended before it was ready", p.address)
		default:
		}
		text, err := os.ReadFile(r.stdout)
		if err != nil {
			p.t.Fatal(err)
		}
		return strings.Contains(string(text), "serves gRPC on "+p.address)
	})
}

func (p *process) current() *life {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

// signal sends a signal and waits for the end. It is false when nothing runs.
func (p *process) signal(s syscall.Signal) bool {
	p.mu.Lock()
	r := p.running
	if r == nil || r.meant {
		p.mu.Unlock()
		return false
	}
	r.meant = true
	p.mu.Unlock()
	err := r.cmd.Process.Signal(s)
	<-r.ended
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("%v to the process on %s: %v", s, p.address, err)
	}
	return true
}

// pause stops the process by SIGSTOP, or lets it go on by SIGCONT.
func (p *process) pause(s syscall.Signal) {
	p.t.Helper()
	if err := p.current().cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%v to the process on %s: %v", s, p.address, err)
	}
}

// kill ends the process at once.
func (p *process) kill() { p.signal(syscall.SIGKILL) }

// terminate ends the process in good order, and checks that it says so.
func (p *process) terminate() {
	p.t.Helper()
	r := p.current()
	if p.signal(syscall.SIGTERM) && r.cmd.ProcessState.ExitCode() != 0 {
		p.t.Errorf("the process on %s ended with %v after SIGTERM:\n%s", p.address, r.cmd.ProcessState, p.said(r, 30))
	}
}

// log returns all that the present run has logged.
func (p *process) log() string {
	text, err := os.ReadFile(p.current().stderr)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

func (p *process) said(r *life, lines int) string {
	text, _ := os.ReadFile(r.stderr)
	return lastLines(string(text), lines)
}

// complain reports what no run may say, and how the last one ended if the test failed.
func (p *process) complain() {
	names, _ := filepath.Glob(filepath.Join(p.dir, "*.stderr"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", `"code":"Internal"`} {
			if strings.Contains(string(text), bad) {
				_, after, _ := strings.Cut(string(text), bad)
				p.t.Errorf("the process on %s said %q:\n%s", p.address, bad, firstLines(after, 60))
				break
			}
		}
	}
	if r := p.current(); r != nil && p.t.Failed() {
		p.t.Logf("the last words of the process on %s:\n%s", p.address, p.said(r, 25))
	}
}

// firstLines returns the first lines of a text.
func firstLines(text string, n int) string {
	lines := strings.SplitN(text, "\n", n+1)
	return strings.Join(lines[:min(len(lines), n)], "\n")
}
