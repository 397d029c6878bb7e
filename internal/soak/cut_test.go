package soak_test

import (
	"context"
	"encoding/json"
	"net"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

// line is the way from one client to the service. Each connection that is made leads
// through the proxy of the moment.
type line struct {
	t     *testing.T
	to    string
	proxy atomic.Pointer[proxy]
}

func newLine(t *testing.T, to string) *line {
	l := &line{t: t, to: to}
	l.proxy.Store(newProxy(t, to))
	return l
}

// dead makes the connections of so far silent for ever; new ones are as good as ever.
func (l *line) dead() {
	old := l.proxy.Swap(newProxy(l.t, l.to))
	old.silence()
}

// cut closes the connections of so far; new ones are as good as ever.
func (l *line) cut() { l.proxy.Swap(newProxy(l.t, l.to)).cut() }

func (l *line) dialer() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.proxy.Load().Listen)
	})
}

func TestAWatchOutlivesConnectionsThatBreakOrFallSilent(t *testing.T) {
	short(t, disconnected)
}

// disconnected breaks the connections of one subscriber, and makes others of them silent,
// under load.
func disconnected(r round) {
	p := newProcess(r.T, append(r.flags(), "--data-dir", r.TempDir())...)
	p.start()
	p.ready()
	s := r.begin(p.address)
	l := newLine(r.T, p.address)
	sub := subscribe(r.T, dialLibrary(r, client.Options{DialOptions: []grpc.DialOption{l.dialer()}}, p.address), "a subscriber on a bad line", nil, 0)
	s.subscribers = append(s.subscribers, sub)
	sub.until(r.T, "the subscription", conformance.SnapshotSeen)
	goesOn := func(what string, hurt func()) {
		time.Sleep(time.Duration(r.random.Int64N(int64(300 * time.Millisecond))))
		before := len(sub.Seen().Streams())
		hurt()
		began := time.Now()
		sub.until(r.T, "a further stream", func(c *conformance.Connection) bool { return len(c.Streams()) > before })
		r.summary.count(what, 1)
		r.summary.took("until the next stream after "+what, time.Since(began))
	}
	for range r.times(6, 40) {
		goesOn("connections that were cut", l.cut)
	}
	for range r.times(1, 3) {
		goesOn("connections that fell silent", l.dead)
	}
	s.finish()
}

func TestTheStreamOfAClientThatVanishesIsFreed(t *testing.T) {
	short(t, vanished)
}

// vanished leaves streams whose clients say nothing any more: of one the process is
// killed, another is cut off without a word.
func vanished(r round) {
	p := newProcess(r.T, append(r.flags(), "--data-dir", r.TempDir(), "--log-level", "info")...)
	p.start()
	p.ready()

	watcher := exec.Command(program, "watch", "--server", p.address, "--principal", "killed", "-o", "json")
	watcher.Env = environment
	out, err := watcher.StdoutPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := watcher.Start(); err != nil {
		r.Fatal(err)
	}
	if err := json.NewDecoder(out).Decode(&map[string]any{}); err != nil {
		r.Fatalf("the watch says nothing: %v", err)
	}
	_ = watcher.Process.Kill()
	_ = watcher.Wait()
	began := time.Now()
	await(r.T, "the stream of a killed process ends", func() bool { return p.ended("killed") != "" })
	r.summary.took("until the stream of a client that was killed is freed", time.Since(began))

	l := newLine(r.T, p.address)
	silent, err := grpc.NewClient("passthrough:///service", grpc.WithTransportCredentials(insecure.NewCredentials()), l.dialer())
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	ctx := metadata.AppendToOutgoingContext(r.Context(), "instanced-principal", "silent")
	stream, err := conformance.Watch(ctx, instancedv1.NewInstanceServiceClient(silent), &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(interval)})
	if err != nil {
		r.Fatal(err)
	}
	if _, err := stream.Until(patient(r.T), conformance.SnapshotSeen); err != nil {
		r.Fatal(err)
	}
	l.dead()
	began = time.Now()
	await(r.T, "the stream of a client that fell silent ends", func() bool { return p.ended("silent") != "" })
	r.summary.count("clients that vanished", 2)
	r.summary.took("until the stream of a client that fell silent is freed", time.Since(began))
	r.Logf("seed %d: the stream of a client that fell silent was freed after %v", r.seed, time.Since(began).Round(time.Millisecond))
}

// ended returns the line of the log that tells of the end of a subscriber's stream.
func (p *process) ended(principal string) string {
	for line := range strings.Lines(p.log()) {
		if strings.Contains(line, `"method":"WatchInstances"`) && strings.Contains(line, `"principal_unverified":"`+principal+`"`) {
			return line
		}
	}
	return ""
}
