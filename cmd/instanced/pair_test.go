package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/cli"
)

// service is `instanced serve` in a process of its own, which keeps its flags and its
// journal when it is started again.
type service struct {
	t    *testing.T
	dir  string
	args []string
	env  []string // beside that of all
	// before is a shell command that runs first and limits the process.
	before string

	cmd     *exec.Cmd
	ended   chan struct{}
	address string
}

// runService starts the service, waits until it serves, and ends it with the test.
func runService(t *testing.T, args ...string) *service {
	t.Helper()
	return runServiceIn(t, nil, args...)
}

// runServiceIn is runService with more variables in the environment.
func runServiceIn(t *testing.T, env []string, args ...string) *service {
	t.Helper()
	return runServiceAfter(t, "", env, args...)
}

// runServiceAfter is runServiceIn in the process of a shell that has run a command before.
func runServiceAfter(t *testing.T, before string, env []string, args ...string) *service {
	t.Helper()
	s := &service{t: t, dir: t.TempDir(), env: env, before: before}
	s.args = append([]string{"serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(s.dir, "data"), "--log-format", "text"}, args...)
	s.run()
	return s
}

// runServiceOn is runService with the journal in an external etcd.
func runServiceOn(t *testing.T, endpoint string, args ...string) *service {
	t.Helper()
	s := &service{t: t, dir: t.TempDir()}
	s.args = append([]string{"serve", "--listen", "127.0.0.1:0", "--etcd-endpoints", endpoint, "--log-format", "text"}, args...)
	s.run()
	return s
}

// run starts the service for the first time, and ends it with the test.
func (s *service) run() {
	s.t.Helper()
	s.t.Cleanup(func() {
		s.kill()
		if s.t.Failed() {
			said := s.log()
			s.t.Logf("%v says at the end:\n%s", s.args, said[max(0, len(said)-8<<10):])
		}
	})
	s.start()
}

// start runs the program and waits until it serves.
func (s *service) start() {
	s.t.Helper()
	stdout, err := os.Create(filepath.Join(s.dir, "stdout"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = stdout.Close() }()
	stderr, err := os.OpenFile(filepath.Join(s.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = stderr.Close() }()
	s.cmd = exec.Command("instanced", s.args...)
	if s.before != "" {
		s.cmd = afterCommand(s.before, s.args...)
	}
	s.cmd.Env = append(awsEnvironment(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = stdout, stderr
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() {
		defer close(ended)
		_ = cmd.Wait() // killed, as a rule
	}()
	eventually(s.t, "it serves", func() bool {
		select {
		case <-ended:
			s.t.Fatalf("the service ended:\n%s", s.log())
		default:
		}
		said, _ := os.ReadFile(stdout.Name()) // may not be there yet
		found := servesOn.FindSubmatch(said)
		if found != nil {
			s.address = string(found[1])
		}
		return found != nil
	})
}

// afterCommand is the program in the process of a shell that has run a command before.
func afterCommand(before string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", before + ` && exec "$@"`, "sh", "instanced"}, args...)...)
}

func (s *service) kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGKILL) // may have ended already
		<-s.ended
	}
}

// log is what the service has said so far.
func (s *service) log() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "stderr")) // may not be there yet
	return string(text)
}

// conn is a connection that retries nothing.
func (s *service) conn() *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *service) instances() instancedv1.InstanceServiceClient {
	s.t.Helper()
	return instancedv1.NewInstanceServiceClient(s.conn())
}

// ask runs a verb of the command line against the service.
func (s *service) ask(args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(patient(s.t), "instanced", append(args, "--server", s.address)...)
	cmd.Env = awsEnvironment()
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		s.t.Error(err)
		return "", "", -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// awsEnvironment is that of this process without what would lead elsewhere, and with
// credentials that the simulator takes for a name.
func awsEnvironment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "OTEL_") && !strings.HasPrefix(v, cli.EnvPrefix) {
			env = append(env, v)
		}
	}
	return append(env, "GORACE=atexit_sleep_ms=0",
		"AWS_ACCESS_KEY_ID=AKIAINSTANCED", "AWS_SECRET_ACCESS_KEY=secret", "AWS_EC2_METADATA_DISABLED=true")
}

// patient returns a context whose timeout passes only if something is broken.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*storyTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	within(t, 2*storyTimeout, what, holds)
}

// within is eventually with another timeout.
func within(t *testing.T, d time.Duration, what string, holds func() bool) {
	t.Helper()
	if !comesAbout(d, holds) {
		t.Fatalf("it never came about that %s", what)
	}
}

// comesAbout is within for goroutines that are not the test's own, which must not end it.
func comesAbout(d time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(d); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// road leads to an EC2 endpoint, counts the calls that take it, and can be closed.
type road struct {
	t       *testing.T
	address string
	target  *httputil.ReverseProxy

	mu     sync.Mutex
	server *http.Server
	taken  []url.Values
}

func newRoad(t *testing.T, endpoint string) *road {
	t.Helper()
	r := &road{t: t, address: "127.0.0.1:0", target: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: endpoint})}
	r.open()
	t.Cleanup(r.close)
	return r
}

// open lets calls pass, on the address of the first time.
func (r *road) open() {
	r.t.Helper()
	lis, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.address = lis.Addr().String()
	server := &http.Server{Handler: r, ReadHeaderTimeout: storyTimeout}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = server
	go func() { _ = server.Serve(lis) }() // until it is closed
}

func (r *road) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.server.Close() // what is under way is cut off
}

func (r *road) url() string { return "http://" + r.address }

// ServeHTTP counts a call and passes it on.
func (r *road) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	form, _ := url.ParseQuery(string(body)) // of no action then
	r.mu.Lock()
	r.taken = append(r.taken, form)
	r.mu.Unlock()
	req.Body = io.NopCloser(bytes.NewReader(body))
	r.target.ServeHTTP(w, req)
}

// calls returns the parameters of all calls since the given number of them.
func (r *road) calls(since int) []url.Values {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]url.Values(nil), r.taken[since:]...)
}

// actions counts calls by their action.
func actions(calls []url.Values) map[string]int {
	n := make(map[string]int)
	for _, c := range calls {
		n[c.Get("Action")]++
	}
	return n
}

// withDoor runs the service with an EC2 endpoint of its own, whose address stays the same.
func withDoor(t *testing.T, args ...string) (s *service, endpoint string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint = lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	return runService(t, append(args, "--ec2-listen", endpoint, "--log-level", "warn")...), endpoint
}

// simulated runs the service with the simulator and an EC2 endpoint.
func simulated(t *testing.T, fleet string, args ...string) (s *service, endpoint string) {
	t.Helper()
	if fleet != "" {
		file := filepath.Join(t.TempDir(), "fleet.yaml")
		if err := os.WriteFile(file, []byte(fleet), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--sim-fleet", file)
	}
	return withDoor(t, args...)
}

// fronting runs the service with an EC2 endpoint behind it.
func fronting(t *testing.T, endpoint string, args ...string) *service {
	t.Helper()
	return runService(t, append([]string{"--backend", "ec2", "--aws-region", "us-east-1", "--aws-endpoint-url", endpoint}, args...)...)
}
