package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// TestALogThatIsNotReadHoldsNoCallUp gives the service a pipe for standard error that is
// read only after far more calls than there is room for their lines.
func TestALogThatIsNotReadHoldsNoCallUp(t *testing.T) {
	t.Parallel()
	const callers, calls = 8, 1250
	dir := t.TempDir()
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdout.Close() }()
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("instanced", "serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(dir, "data"))
	cmd.Env = awsEnvironment()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stderr.Close() // the process has its own
	defer func() { _ = cmd.Process.Kill() }()
	var address string
	eventually(t, "it serves", func() bool {
		said, _ := os.ReadFile(stdout.Name()) // may not be whole yet
		found := servesOn.FindSubmatch(said)
		if found != nil {
			address = string(found[1])
		}
		return found != nil
	})
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	instances := instancedv1.NewInstanceServiceClient(conn)

	ctx := patient(t)
	var calling sync.WaitGroup
	for range callers {
		calling.Go(func() {
			for range calls {
				if _, err := instances.GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{}); err != nil {
					t.Errorf("a call while the log is not read: %v", err)
					return
				}
			}
		})
	}
	calling.Wait()
	if t.Failed() {
		return
	}

	reported, lines := 0, 0
	read := make(chan struct{})
	go func() {
		defer close(read)
		for log := bufio.NewScanner(unread); log.Scan(); {
			lines++
			if _, count, found := strings.Cut(log.Text(), `log lines dropped: standard error was not read fast enough","lines":`); found {
				_, _ = fmt.Sscan(count, &reported)
				// From now on nothing is dropped, and all that follows is read.
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	<-read
	if err := cmd.Wait(); err != nil {
		t.Errorf("the service ended with %v", err)
	}
	if reported == 0 || lines+reported < callers*calls {
		t.Errorf("%d lines were written and %d reported as dropped, of at least %d", lines, reported, callers*calls)
	}
}

func TestALogWhoseReaderHasGoneEndsNothing(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("instanced", "serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data"))
	cmd.Env = awsEnvironment()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	gone, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stderr.Close() // the process has its own
	defer func() { _ = cmd.Process.Kill() }()
	said := bufio.NewScanner(stdout)
	serves := false
	for !serves && said.Scan() {
		serves = servesOn.MatchString(said.Text())
	}
	if !serves {
		t.Fatalf("the service ended before it served: %v", cmd.Wait())
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the service ended with %v", err)
	}
}

// TestAFullDiskUnderTheLogEndsNothing fills a small file system under the log, and makes room
// again.
func TestAFullDiskUnderTheLogEndsNothing(t *testing.T) {
	t.Parallel()
	before := namespaces(t, "--mount", "mount -t tmpfs -o size=16k none /mnt && exec 2> /mnt/log")
	s := runServiceAfter(t, before, nil, "--log-format", "json", "--sim-speed", "0")
	client := s.instances()
	describe := func() {
		if _, err := client.DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{PageSize: 1}); err != nil {
			t.Fatal(err)
		}
	}
	// Through the process, since the file system is in a namespace of its own.
	name := fmt.Sprintf("/proc/%d/root/mnt/log", s.cmd.Process.Pid)
	size := func() int64 {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	const more = 50
	eventually(t, "the disk is full", func() bool {
		describe()
		return size() == 16<<10
	})
	for range more { // all are lost
		describe()
	}
	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
	lost := 0
	eventually(t, "the lost lines are counted", func() bool {
		describe()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(strings.TrimLeft(string(text), "\x00")) {
			var said struct {
				Msg, Error string
				Lines      int
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "log lines dropped: standard error cannot be written to" && said.Error == "no space left on device" {
				lost += said.Lines
			}
		}
		return lost > 0
	})
	if lost < more {
		t.Errorf("%d lines are reported as dropped, of at least %d", lost, more)
	}
}

// TestTheLogIsJSONUnlessItIsOnATerminal compares the format where nothing asks for one.
func TestTheLogIsJSONUnlessItIsOnATerminal(t *testing.T) {
	t.Parallel()
	pty, tty, err := openTerminal(80)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pty.Close() }()
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stderr.Close() }()
	firstLine := func(stderr, from *os.File) string {
		cmd := exec.Command("instanced", "serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data"))
		cmd.Env, cmd.Stderr = awsEnvironment(), stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
		}()
		var text []byte
		eventually(t, "there is a line", func() bool {
			buf := make([]byte, 1024)
			n, _ := from.Read(buf) // at the end of the file there may be more
			text = append(text, buf[:n]...)
			return bytes.Contains(text, []byte("\n"))
		})
		line, _, _ := strings.Cut(string(text), "\n")
		return line
	}
	written, err := os.Open(stderr.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = written.Close() }()
	if line := firstLine(stderr, written); !json.Valid([]byte(line)) {
		t.Errorf("in a file the log begins with %s", line)
	}
	if line := firstLine(tty, pty); !strings.HasPrefix(line, "time=") {
		t.Errorf("on a terminal the log begins with %s", line)
	}
	_ = tty.Close()
}

func TestDroppedLogLinesAreCountedBehindThoseBeforeThem(t *testing.T) {
	t.Parallel()
	unread, stderr := io.Pipe()
	queue := newLogQueue(stderr, func(lines int, _ error) error {
		_, err := fmt.Fprintf(stderr, "dropped %d\n", lines)
		return err
	})
	line := []byte(strings.Repeat("x", 1<<10-1) + "\n")
	// As much again may be on its way to the pipe.
	const lines = 2*(maxQueuedLogBytes>>10) + 100
	for range lines {
		_, _ = queue.Write(line)
	}
	kept, reported := 0, 0
	log := bufio.NewScanner(unread)
	for reported == 0 && log.Scan() {
		if _, err := fmt.Sscanf(log.Text(), "dropped %d", &reported); err != nil {
			kept++
		}
	}
	if kept+reported != lines || reported == 0 {
		t.Errorf("%d lines came and %d were reported as dropped, of %d", kept, reported, lines)
	}
	_, _ = queue.Write([]byte("later\n"))
	go func() {
		queue.Close()
		_ = stderr.Close()
	}()
	if rest, _ := io.ReadAll(unread); string(rest) != "later\n" {
		t.Errorf("at the end came %q", rest)
	}
}

// Line after line, with the destination idle in between and busy: what is queued must never
// share memory with what is being written.
func TestLinesThatComeWhileOthersAreWrittenLeaveThemAlone(t *testing.T) {
	const lines = 2000
	var mu sync.Mutex
	var written bytes.Buffer
	pieces := make(chan struct{}, lines)
	q := newLogQueue(writerFunc(func(p []byte) (int, error) {
		for _, b := range p { // a slow reader of the same memory
			mu.Lock()
			written.WriteByte(b)
			mu.Unlock()
		}
		pieces <- struct{}{}
		return len(p), nil
	}), func(int, error) error { return nil })
	var want strings.Builder
	for n := range lines {
		line := fmt.Sprintf("line %d\n", n)
		want.WriteString(line)
		_, _ = q.Write([]byte(line))
		if n%3 == 0 {
			<-pieces // the queue has run empty
		}
	}
	q.Close()
	mu.Lock()
	defer mu.Unlock()
	if written.String() != want.String() {
		t.Error("the lines were not written as they came")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
