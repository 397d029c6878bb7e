package ec2

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"github.com/instanced/instanced/internal/instance"
)

// term is one that a test ends, or that only this process does not know the end of yet.
type term struct {
	left atomic.Int64
	done chan struct{}
	once sync.Once
}

func newTerm() *term {
	t := &term{done: make(chan struct{})}
	t.left.Store(int64(time.Hour))
	return t
}

func (t *term) Remaining() time.Duration { return time.Duration(t.left.Load()) }
func (t *term) Done() <-chan struct{}    { return t.done }

// run out is what happens to the term of a process that is stopped, or cut off: no more is
// certain, but nothing tells it.
func (t *term) runOut() { t.left.Store(int64(instance.MinTermLeft - 1)) }

func (t *term) end() {
	t.left.Store(0)
	t.once.Do(func() { close(t.done) })
}

func in(t *term, cmd instance.Command) instance.Command {
	cmd.Term = t
	return cmd
}

// wantUnsent checks that a caller was told that nothing was changed, since this process may
// no longer command EC2.
func wantUnsent(t *testing.T, o outcome) {
	t.Helper()
	if e := o.refusedAs(t); e.Kind != instance.KindUnavailable || e.Reason != instance.ReasonNotOwner || e.OutcomeUnknown || e.RetryAfter == 0 || len(o.result.Changes) > 0 {
		t.Errorf("got %+v beside %+v; want that nothing was changed by a process that is not the owner", e, o.result)
	}
}

// wire listens for connections and keeps all that is read from them.
type wire struct {
	net.Listener
	mu   sync.Mutex
	read bytes.Buffer
}

type wiredConn struct {
	net.Conn
	wire *wire
}

func (w *wire) Accept() (net.Conn, error) {
	conn, err := w.Listener.Accept()
	return &wiredConn{conn, w}, err
}

func (c *wiredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	c.wire.read.Write(p[:n])
	return n, err
}

// requests is how many requests have begun to arrive.
func (w *wire) requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Count(w.read.Bytes(), []byte("POST / HTTP"))
}

// TestNoByteIsWrittenAfterTheTerm has the term run out at each step of a call on its way to
// a connection, new or kept, after everything before it had found that it lasts.
func TestNoByteIsWrittenAfterTheTerm(t *testing.T) {
	// Each is run with the request, or the connection for it, on its way.
	steps := map[string]func(transport *http.Transport, runOut func()){
		"before a connection is chosen": func(transport *http.Transport, runOut func()) {
			transport.Proxy = func(*http.Request) (*url.URL, error) { runOut(); return nil, nil } //nolint:nilnil // no proxy
		},
		"while it is made": func(transport *http.Transport, runOut func()) {
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				runOut()
				return new(net.Dialer).DialContext(ctx, network, address)
			}
		},
		"when TLS is agreed upon": func(transport *http.Transport, runOut func()) {
			transport.TLSClientConfig.VerifyConnection = func(tls.ConnectionState) error { runOut(); return nil }
		},
	}
	for name, step := range steps {
		for _, kept := range []bool{false, true} {
			if kept && name != "before a connection is chosen" {
				continue // there is no such step on a kept connection
			}
			for _, secure := range []bool{false, true} {
				if !secure && name == "when TLS is agreed upon" {
					continue
				}
				for _, many := range []int{1, 1000} { // more than fits into one write
					t.Run(fmt.Sprintf("%s, kept %v, TLS %v, %d instances", name, kept, secure, many), func(t *testing.T) {
						t.Parallel()
						testLapse(t, step, kept, secure, ids(0, many))
					})
				}
			}
		}
	}
}

func testLapse(t *testing.T, step func(*http.Transport, func()), kept, secure bool, list []instance.ID) {
	e := &endpoint{answer: (&fleet{}).answer}
	srv := httptest.NewUnstartedServer(e)
	w := &wire{Listener: srv.Listener}
	srv.Listener = w
	if secure {
		srv.EnableHTTP2 = true // which would carry several calls at once
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	present := newTerm()
	var armed atomic.Bool
	armed.Store(!kept)
	b := connect(t, nil, func(c *Config) {
		c.AWS.BaseEndpoint = new(srv.URL)
		c.AWS.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(transport *http.Transport) {
			transport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			step(transport, func() {
				if armed.Load() {
					present.runOut()
				}
			})
		})
	})
	if kept {
		if o := execute(t.Context(), b, in(present, start(id(5000)))); o[0].err != nil {
			t.Fatal(o[0].err)
		}
		armed.Store(true)
	}
	before := len(e.of("StartInstances"))
	wantUnsent(t, execute(t.Context(), b, in(present, start(list...)))[0])
	// The same connections serve whoever is the owner later, and reads at all times.
	armed.Store(false)
	if _, err := b.Describe(t.Context(), instance.DescribeQuery{IDs: list[:1]}); err != nil {
		t.Errorf("a read that needs no term got %v", err)
	}
	if o := execute(t.Context(), b, in(newTerm(), start(list...))); o[0].err != nil {
		t.Errorf("a command of the next term got %v", o[0].err)
	}
	if got := len(e.of("StartInstances")); got != before+1 {
		t.Errorf("EC2 got %d calls, want that of the next term alone", got-before)
	}
	if all := len(e.of("StartInstances")) + len(e.of("DescribeInstances")); !secure && w.requests() != all {
		t.Errorf("%d requests began to arrive, %d of them whole", w.requests(), all)
	}
}

// TestAWriteIsRefusedInTheMiddleOfARequest has the term run out between two writes of one
// large request: what is not complete is not carried out.
func TestAWriteIsRefusedInTheMiddleOfARequest(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()          //nolint:errcheck // a pipe
	go io.Copy(io.Discard, far) //nolint:errcheck // until it is closed
	defer far.Close()           //nolint:errcheck // a pipe
	present := newTerm()
	conn := &fencedConn{Conn: near}
	conn.fence.Store(&fence{term: present})
	if _, err := conn.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	present.runOut()
	if n, err := conn.Write([]byte("b")); n != 0 || err == nil {
		t.Errorf("%d bytes were written, %v", n, err)
	}
}

// TestNothingIsSentAfterTheTermOnAnyPath ends the term at each step of a command's way
// through batches and retries. Once it is over, EC2 gets no command, and callers are told
// the truth: that nothing was changed, or that the outcome is unknown.
func TestNothingIsSentAfterTheTermOnAnyPath(t *testing.T) {
	throttled := refusal(503, "RequestLimitExceeded", "Request limit exceeded.")
	nameless := refusal(400, "UnsupportedOperation", "Something about one of them.")
	one := &Limit{Capacity: 1, Refill: 0.01}
	tests := map[string]struct {
		limit *Limit
		cmds  func(*term) []instance.Command
		// answer is what EC2 says to the n-th command; the term has ended when it is sent.
		answer func(e *endpoint, n int, end func()) (reply, error, bool)
		check  func(*testing.T, []outcome)
	}{
		"while it waits for a bucket": {
			limit: one,
			cmds: func(now *term) []instance.Command {
				return []instance.Command{in(now, start(id(1))), in(now, start(id(2))), in(now, each(start(id(3), id(4))))}
			},
			answer: func(_ *endpoint, _ int, end func()) (reply, error, bool) {
				time.AfterFunc(time.Second, end)
				return reply{}, nil, false
			},
			check: func(t *testing.T, o []outcome) {
				if o[0].err != nil {
					t.Errorf("what was sent in time got %v", o[0].err)
				}
				wantUnsent(t, o[1])
				wantUnsent(t, o[2])
			},
		},
		"while it waits since EC2 throttled": {
			cmds: func(now *term) []instance.Command { return []instance.Command{in(now, start(id(1)))} },
			answer: func(_ *endpoint, _ int, end func()) (reply, error, bool) {
				time.AfterFunc(10*time.Millisecond, end)
				return throttled, nil, true
			},
			check: func(t *testing.T, o []outcome) { wantUnsent(t, o[0]) },
		},
		"before it is sent again after an answer was lost": {
			cmds: func(now *term) []instance.Command { return []instance.Command{in(now, start(id(1)))} },
			answer: func(_ *endpoint, _ int, end func()) (reply, error, bool) {
				end()
				return reply{}, errLost, true
			},
			check: func(t *testing.T, o []outcome) {
				if e := o[0].refusedAs(t); !e.OutcomeUnknown {
					t.Errorf("got %v, want an unknown outcome", e)
				}
			},
		},
		"while a bad one is looked for": {
			cmds: func(now *term) []instance.Command {
				return []instance.Command{in(now, start(id(99))), in(now, start(id(1))), in(now, start(id(2))), in(now, start(id(3))), in(now, start(id(4)))}
			},
			answer: func(e *endpoint, n int, end func()) (reply, error, bool) {
				if n == 1 {
					return reply{}, nil, false
				}
				if n == 3 {
					end()
				}
				return nameless, nil, true
			},
			check: func(t *testing.T, o []outcome) {
				for _, late := range o[1:] {
					wantUnsent(t, late)
				}
			},
		},
		"while a reboot is on its way": {
			cmds: func(now *term) []instance.Command {
				return []instance.Command{in(now, instance.Command{Verb: instance.VerbReboot, IDs: ids(1, 2)})}
			},
			answer: func(_ *endpoint, _ int, end func()) (reply, error, bool) {
				end()
				return reply{}, errLost, true
			},
			check: func(t *testing.T, o []outcome) {
				if e := o[0].refusedAs(t); !e.OutcomeUnknown {
					t.Errorf("got %v, want an unknown outcome", e)
				}
			},
		},
	}
	for name, test := range tests {
		for how, finish := range map[string]func(*term){"is over": (*term).end, "may be over, and is not reported so": (*term).runOut} {
			if how != "is over" && name == "while it waits for a bucket" {
				continue // it waits on, and is refused in the end
			}
			inBubble(t, name+", which "+how, func(t *testing.T) {
				now := newTerm()
				f := &fleet{}
				var sent atomic.Int32
				e := &endpoint{latency: always(time.Millisecond)}
				e.answer = func(ctx context.Context, c call) (reply, error) {
					if c.action == "DescribeInstances" {
						return f.answer(ctx, c)
					}
					if instance.CheckTerm(now) != nil {
						t.Errorf("EC2 gets %s of %v after the term", c.action, c.ids)
					}
					if r, err, own := test.answer(e, int(sent.Add(1)), func() { finish(now) }); own {
						return r, err
					}
					return f.answer(ctx, c)
				}
				b := connect(t, e, func(c *Config) {
					if test.limit != nil {
						c.Limits.Start = ActionLimits{Requests: test.limit}
					}
				})
				test.check(t, execute(t.Context(), b, test.cmds(now)...))
			})
		}
	}
}

// TestTermsDoNotShareABatch has commands of two terms of one process wait for the same
// bucket: commands of the first are rejected when it ends, and commands of the second carried out.
func TestTermsDoNotShareABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: (&fleet{}).answer, latency: always(time.Millisecond)}
		b := connect(t, e, func(c *Config) { c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 1, Refill: 0.1}} })
		before, after := newTerm(), newTerm()
		time.AfterFunc(time.Second, before.runOut)
		o := execute(t.Context(), b, in(before, start(id(1))), in(before, start(id(2))), in(after, start(id(2), id(3))), in(after, start(id(3))))
		if o[0].err != nil {
			t.Error(o[0].err)
		}
		wantUnsent(t, o[1])
		for _, later := range o[2:] {
			if later.err != nil {
				t.Error(later.err)
			}
		}
		for _, c := range e.of("StartInstances")[1:] {
			if !slices.Contains(c.ids, id(3)) {
				t.Errorf("EC2 got a call for %v", c.ids)
			}
		}
	})
}
