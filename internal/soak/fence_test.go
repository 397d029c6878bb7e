package soak_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"

	"github.com/instanced/instanced/internal/addrtest"
)

// road leads from one process to an EC2 endpoint. It notes when the first byte of each
// command arrived.
type road struct {
	address string

	mu       sync.Mutex
	began    map[string]time.Time // by connection: when the request under way began
	commands []sentCommand
}

// sentCommand is a request to EC2 that would change instances.
type sentCommand struct {
	action string
	ids    []string
	at     time.Time
	// refused is whether EC2 said that it changed nothing.
	refused bool
}

// statusOf keeps the status of an answer.
type statusOf struct {
	http.ResponseWriter
	status int
}

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

func newRoad(t testing.TB, endpoint string) *road {
	t.Helper()
	r := &road{address: addrtest.Free(t), began: make(map[string]time.Time)}
	lis, err := net.Listen("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "http", Host: endpoint}) },
		Transport: transport,
	}
	server := &http.Server{
		ReadHeaderTimeout: maxWait,
		Handler:           r.handler(proxy),
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateActive { // a byte of a request has come
				r.mu.Lock()
				defer r.mu.Unlock()
				r.began[conn.RemoteAddr().String()] = time.Now()
			}
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(lis) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		transport.CloseIdleConnections()
	})
	return r
}

func (r *road) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		answer := &statusOf{ResponseWriter: w}
		form, _ := url.ParseQuery(string(body)) // of no action then
		if action := form.Get("Action"); !strings.HasPrefix(action, "Describe") {
			c := sentCommand{action: action}
			for key, values := range form {
				if strings.HasPrefix(key, "InstanceId.") {
					c.ids = append(c.ids, values...)
				}
			}
			r.mu.Lock()
			c.at = r.began[req.RemoteAddr]
			n := len(r.commands)
			r.commands = append(r.commands, c)
			r.mu.Unlock()
			defer func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.commands[n].refused = answer.status >= http.StatusBadRequest
			}()
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(answer, req)
	})
}

// since returns the commands whose first byte came after a time.
func (r *road) since(at time.Time) (list []sentCommand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.commands {
		if c.at.After(at) {
			list = append(list, c)
		}
	}
	return list
}

func TestAProcessThatIsNoLongerTheOwnerSendsNothing(t *testing.T) { short(t, fenced) }

// fenced stops the owner of two processes in front of one EC2, or parts it from etcd, while
// commands wait for buckets, are throttled, retried and on their way; another process takes
// over, and the first one goes on. EC2 must get nothing from it any more, and callers who
// are told that nothing was changed must be told the truth.
func fenced(r round) {
	// EC2 is a third process: the simulator, with EC2's throttles.
	endpoint := addrtest.Free(r)
	world := newProcess(r.T, append(r.flags(), "--sim-throttle", "--ec2-listen", endpoint, "--data-dir", r.TempDir())...)
	world.start()
	world.ready()

	p := &pair{round: r}
	e := newEtcd(r)
	var roads []*road
	for range 2 {
		network, way := newProxy(r, e.address), newRoad(r, endpoint)
		one := newProcess(r.T, "--backend", "ec2", "--aws-region", "us-east-1", "--aws-endpoint-url", "http://"+way.address,
			"--etcd-endpoints", "http://"+network.Listen, "--log-level", "error")
		p.processes, p.networks, roads = append(p.processes, one), append(p.networks, network), append(roads, way)
		p.conns = append(p.conns, dial(r, one.address))
		one.start()
		one.ready()
	}

	ctx, end := context.WithCancel(r.Context())
	var callers sync.WaitGroup
	r.Cleanup(callers.Wait)
	r.Cleanup(end)
	var answered, unsent counter
	for n := range fleetSize {
		callers.Go(func() { r.commandOne(ctx, p, roads, instanceID(n), uint64(n), &answered, &unsent) })
	}
	served := func() {
		before := answered.get()
		await(r.T, "callers are served", func() bool { return answered.get() >= before+5 })
	}
	served()
	for n := range r.times(1, 6) {
		owner := p.owner()
		time.Sleep(time.Duration(r.random.Int64N(int64(time.Second)))) // anything may be under way
		lost, resume := "stopped", func() { p.processes[owner].pause(syscall.SIGCONT) }
		if n%2 == 0 {
			p.processes[owner].pause(syscall.SIGSTOP)
		} else {
			lost, resume = "parted from etcd", p.networks[owner].restore
			p.networks[owner].silence()
		}
		await(r.T, "the other process takes over", func() bool {
			info, err := info(r.T, p.conns[1-owner])
			return err == nil && info.GetOwner().GetIsThisProcess()
		})
		over := time.Now()
		served()
		resume()
		await(r.T, "the process that was the owner knows that it is not", func() bool {
			info, err := info(r.T, p.conns[owner])
			return err == nil && info.GetOwner().GetAddress() == p.processes[1-owner].address
		})
		served()
		served() // what waited there for a bucket, or to try again, has had the time
		for _, c := range roads[owner].since(over) {
			r.Errorf("EC2 got %s of %v from a process that was %s, %v after another one had taken over", c.action, c.ids, lost, c.at.Sub(over))
		}
		r.summary.count("owners "+lost+" in front of EC2", 1)
	}
	end()
	callers.Wait()
	r.Logf("seed %d: %d commands answered, %d refused unsent", r.seed, answered.get(), unsent.get())
}

// counter counts.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *counter) get() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// commandOne commands one instance, through either process, until ctx ends. It is the only
// caller that commands the instance, so whatever EC2 receives for it during a call was sent
// by that call.
func (r round) commandOne(ctx context.Context, p *pair, roads []*road, id string, seed uint64, answered, unsent *counter) {
	for n := seed; ctx.Err() == nil; n++ {
		at := n % 2
		service := instancedv1.NewInstanceServiceClient(p.conns[at])
		ids, token := []string{id}, ""
		if n%3 == 0 {
			token = fmt.Sprintf("%s-%d", id, n)
		}
		// Half of the callers wait for a stopped process; the others go on.
		calling, cancel := ctx, context.CancelFunc(func() {})
		if seed%2 == 0 {
			calling, cancel = context.WithTimeout(ctx, 3*time.Second)
		}
		began := time.Now()
		var action string
		var err error
		switch n / 2 % 3 {
		case 0:
			action = "StartInstances"
			_, err = service.StartInstances(calling, &instancedv1.StartInstancesRequest{InstanceIds: ids, ClientToken: token})
		case 1:
			action = "RebootInstances"
			_, err = service.RebootInstances(calling, &instancedv1.RebootInstancesRequest{InstanceIds: ids, ClientToken: token})
		default:
			action = "StopInstances"
			_, err = service.StopInstances(calling, &instancedv1.StopInstancesRequest{InstanceIds: ids, ClientToken: token})
		}
		cancel()
		if err == nil {
			answered.add()
		}
		if !saysNothingWasSent(err) {
			continue
		}
		unsent.add()
		for _, c := range roads[at].since(began) {
			if c.action == action && slices.Contains(c.ids, id) && !c.refused {
				r.Errorf("%s of %s was answered with %v, and EC2 carried it out", action, id, err)
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// saysNothingWasSent reports whether a refusal is for want of ownership, and certain.
func saysNothingWasSent(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetReason() == "NOT_OWNER" {
			_, unknown := info.GetMetadata()["outcome"]
			return !unknown
		}
	}
	return false
}
