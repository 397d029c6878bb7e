// Package client is the Go library of instanced.
//
// A [Client] calls InstanceService and adds what callers of a remote service need: errors to
// match with errors.As ([Error]), retries that are safe because each command carries a client
// token, pages as iterators, and a [Client.Watch] that resumes after any interruption.
// docs/client.md describes them in detail. Requests and responses are the generated messages
// of package instancedv1; methods never modify a request.
//
// All methods are safe for concurrent use. They return no later than their context ends.
package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Options tune a [Client]. The zero value works.
type Options struct {
	// Principal is the name of the caller, at most 128 printable ASCII characters. It is sent
	// as the metadata "instanced-principal"; without it the caller is "anonymous". A service
	// with TLS ignores it: there the client certificate says who calls.
	Principal string

	// TransportCredentials secure the connections of [Dial], see [TLSFromFiles]; nil means
	// plaintext, which the service offers on loopback only.
	TransportCredentials credentials.TransportCredentials

	// DialOptions are appended to the options that [Dial] uses. With the stats handler of
	// otelgrpc among them, calls carry the trace of their context to the service.
	DialOptions []grpc.DialOption

	// MaxAttempts is the maximum number of attempts of a call before its error is returned;
	// 0 means 4, and 1 disables retries. Searching for the process that owns the backend, for
	// up to 15 seconds while another one takes over, does not count. A watch that was once
	// established is resumed without limit, and a wait that once reached the service until
	// its timeout.
	MaxAttempts int

	// OnRetry, if set, is called before each retry with the error and the delay, from the
	// goroutine of the call.
	OnRetry func(err error, delay time.Duration)
}

// Client calls one instanced service.
type Client struct {
	service instancedv1.InstanceServiceClient
	health  grpc_health_v1.HealthClient
	opts    Options
	close   func() error
	// peers is whether the connection reports which requests were sent to a server.
	peers bool
	// oneProcess is whether the connection leads to a single process, so that a retry cannot
	// reach another one.
	oneProcess bool
	// reachedOwner is whether a command has ever reached the owner of the backend, so that it
	// is worth waiting for another one if it is gone.
	reachedOwner atomic.Bool
	// target names the service in errors.
	target string
}

// Dial returns a client of the service at target: a host and a port such as
// "127.0.0.1:50051" or "instanced.example:50051", which DNS resolves, or any other gRPC
// target such as "unix:/run/instanced.sock"; anything else is an error.
//
// Connections are made with the first call, one to each address of the name, and made again
// whenever they break; calls use the addresses in turn. Several processes of the service
// behind one name are used as one: each serves reads, and a command that reaches a process
// that does not own the backend is retried at the next. It fails once all reachable processes
// have named an owner that is not among them, which takes a second or two, unless this client
// has reached the owner before. An IP address, localhost or a socket is a single process: if
// another process owns the backend, the command fails at once with its address.
func Dial(target string, opts Options) (*Client, error) {
	if !canBeTarget(target) {
		return nil, fmt.Errorf("client of %q: want a host and a port such as 127.0.0.1:50051, or another target of gRPC such as dns:///instanced.example:50051", target)
	}
	creds := opts.TransportCredentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	dial := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		// gRPC's own backoff grows to two minutes, too long for a watch whose server restarts.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: baseDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxDelay},
			MinConnectTimeout: 5 * time.Second,
		}),
		// Pings detect a dead connection, which a wait, silent for up to an hour, would not
		// notice, and on which a watch would resume. Between calls they keep middleboxes from
		// dropping the connection.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}, opts.DialOptions...)
	conn, err := grpc.NewClient(target, dial...)
	if err != nil {
		return nil, fmt.Errorf("client of %q: %w", target, err)
	}
	c := New(conn, opts)
	c.close = conn.Close
	return c, nil
}

// canBeTarget reports whether a text is a host and a port, or has a scheme and a rest. Dial
// options may add schemes. gRPC itself accepts any text and fails with the first call.
func canBeTarget(text string) bool {
	if _, port, err := net.SplitHostPort(text); err == nil && port != "" && !strings.Contains(port, "/") {
		return true
	}
	u, err := url.Parse(text)
	return err == nil && u.Scheme != "" && strings.Trim(u.Opaque+u.Host+u.Path, "/") != ""
}

// isOneProcess reports whether a gRPC target is an IP address, localhost or a socket.
func isOneProcess(target string) bool {
	if scheme, rest, ok := strings.Cut(target, ":///"); ok && scheme == "dns" {
		target = rest
	}
	if strings.HasPrefix(target, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(target)
	return err == nil && (host == "localhost" || net.ParseIP(host) != nil)
}

// New returns a client on an existing connection. Options that concern the connection are
// ignored.
func New(conn grpc.ClientConnInterface, opts Options) *Client {
	grpcConn, peers := conn.(*grpc.ClientConn)
	target := "the service"
	if peers {
		target = "the service at " + grpcConn.Target()
	}
	return &Client{
		service: instancedv1.NewInstanceServiceClient(conn),
		health:  grpc_health_v1.NewHealthClient(conn),
		opts:    opts,
		close:   func() error { return nil },
		peers:   peers,
		target:  target,

		oneProcess: peers && isOneProcess(grpcConn.Target()),
	}
}

// Close closes the connections of [Dial]. It does not close a connection given to [New].
func (c *Client) Close() error { return c.close() }

// Start starts instances. A response means that they are starting, not that they are running:
// see [Client.StartAndWait].
//
// A request without a client token is sent with a new one, so that a retry gets the first
// response and never restarts an instance that was stopped in between. A dry run that would
// have been permitted returns an empty response and no error.
func (c *Client) Start(ctx context.Context, req *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
	if req.GetClientToken() == "" {
		req = proto.CloneOf(req)
		req.ClientToken = newToken()
	}
	return command(ctx, c, req, c.service.StartInstances)
}

// Stop stops or hibernates instances. Client tokens and dry runs are treated as by
// [Client.Start].
func (c *Client) Stop(ctx context.Context, req *instancedv1.StopInstancesRequest) (*instancedv1.StopInstancesResponse, error) {
	if req.GetClientToken() == "" {
		req = proto.CloneOf(req)
		req.ClientToken = newToken()
	}
	return command(ctx, c, req, c.service.StopInstances)
}

// Reboot asks the operating systems of instances to reboot. Client tokens and dry
// runs are treated as by [Client.Start].
func (c *Client) Reboot(ctx context.Context, req *instancedv1.RebootInstancesRequest) (*instancedv1.RebootInstancesResponse, error) {
	if req.GetClientToken() == "" {
		req = proto.CloneOf(req)
		req.ClientToken = newToken()
	}
	return command(ctx, c, req, c.service.RebootInstances)
}

// Terminate terminates instances permanently. Client tokens and dry runs are treated as by
// [Client.Start].
func (c *Client) Terminate(ctx context.Context, req *instancedv1.TerminateInstancesRequest) (*instancedv1.TerminateInstancesResponse, error) {
	if req.GetClientToken() == "" {
		req = proto.CloneOf(req)
		req.ClientToken = newToken()
	}
	return command(ctx, c, req, c.service.TerminateInstances)
}

// Describe yields the pages of the instances that a filter selects, beginning with
// that of the request's page token. To go on with [Client.Watch] use the cursor of
// the first page. An error is yielded last, beside a nil page; it is one, too, that a page
// leads back to one before it.
func (c *Client) Describe(ctx context.Context, req *instancedv1.DescribeInstancesRequest) iter.Seq2[*instancedv1.DescribeInstancesResponse, error] {
	return pages(ctx, c, req, c.service.DescribeInstances,
		func(req *instancedv1.DescribeInstancesRequest, token string) { req.PageToken = token })
}

// Events yields the pages of the recorded history of instances, oldest first,
// beginning with that of the request's page token. A page may be empty although
// others follow. An error is yielded last, beside a nil page.
func (c *Client) Events(ctx context.Context, req *instancedv1.ListEventsRequest) iter.Seq2[*instancedv1.ListEventsResponse, error] {
	return pages(ctx, c, req, c.service.ListEvents,
		func(req *instancedv1.ListEventsRequest, token string) { req.PageToken = token })
}

// Info returns information about the service and its process.
func (c *Client) Info(ctx context.Context) (*instancedv1.GetServerInfoResponse, error) {
	return retry(ctx, c, &attempts{}, func(ctx context.Context, opts ...grpc.CallOption) (*instancedv1.GetServerInfoResponse, error) {
		return c.service.GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{}, opts...)
	})
}

// method is a unary call of the generated client.
type method[Req, Resp any] func(ctx context.Context, req *Req, opts ...grpc.CallOption) (*Resp, error)

// command calls a verb. Its request carries a client token, which makes a retry safe even if
// the outcome of the first attempt is unknown.
func command[Req, Resp any, Message interface {
	*Req
	proto.Message
}](ctx context.Context, c *Client, req Message, call method[Req, Resp]) (*Resp, error) {
	if err := c.checkRequest(req); err != nil {
		return nil, err
	}
	var made attempts
	resp, err := retry(ctx, c, &made, func(ctx context.Context, opts ...grpc.CallOption) (*Resp, error) {
		return call(ctx, req, opts...)
	})
	if err == nil {
		c.reachedOwner.Store(true)
	}
	if isDryRunSuccess(err) {
		return new(Resp), nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		last := e.OutcomeUnknown
		e.OutcomeUnknown = made.lost && leavesOpen(e) && !isDryRun(req)
		if claim := strings.Index(e.Message, "; nothing was changed"); e.OutcomeUnknown && !last && claim >= 0 {
			e.Message = e.Message[:claim] + "; an earlier attempt got no response" // the claim is about the last one
		}
	}
	return resp, err
}

// pages iterates over the pages of a method.
func pages[Req proto.Message, Resp interface{ GetNextPageToken() string }](
	ctx context.Context, c *Client, req Req,
	call func(ctx context.Context, req Req, opts ...grpc.CallOption) (Resp, error),
	setToken func(req Req, token string),
) iter.Seq2[Resp, error] {
	return func(yield func(Resp, error) bool) {
		var none Resp
		if err := c.checkRequest(req); err != nil {
			yield(none, err)
			return
		}
		next := proto.CloneOf(req)
		var followed pageTokens
		for {
			page, err := retry(ctx, c, &attempts{}, func(ctx context.Context, opts ...grpc.CallOption) (Resp, error) {
				return call(ctx, next, opts...)
			})
			if !yield(page, err) || err != nil || page.GetNextPageToken() == "" {
				return
			}
			if !followed.follow(page.GetNextPageToken()) {
				yield(none, newError(status.Errorf(codes.Internal, "the pages do not end: %s repeats a page token or never returns the last page", c.target), nil))
				return
			}
			setToken(next, page.GetNextPageToken())
		}
	}
}

// maxPages is the maximum number of pages to follow.
const maxPages = 1 << 20

// pageTokens are the tokens that were followed: the last one, and the one behind the 1st,
// 2nd, 4th, 8th, … page, with which every circle is noticed sooner or later (Brent's
// algorithm).
type pageTokens struct {
	pages      int
	last, mark string
}

// follow is false for a token that was followed before, and when there are too many.
func (p *pageTokens) follow(token string) bool {
	if token == p.last || token == p.mark || p.pages == maxPages {
		return false
	}
	p.last = token
	if p.pages++; p.pages&(p.pages-1) == 0 {
		p.mark = token
	}
	return true
}

// outgoing adds what every call says of the caller.
func (c *Client) outgoing(ctx context.Context) context.Context {
	if c.opts.Principal == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "instanced-principal", c.opts.Principal)
}
