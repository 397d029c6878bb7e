package ec2

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"github.com/instanced/instanced/internal/instance"
)

// fence allows the bytes of one request to be written during the term in which its commands were
// accepted, and no longer.
type fence struct {
	term    instance.Term
	refused atomic.Pointer[instance.Error]
}

// check returns why nothing more of the request may be written.
func (f *fence) check() error {
	if f == nil {
		return nil
	}
	if err := instance.CheckTerm(f.term); err != nil {
		f.refused.Store(err)
		return err
	}
	return nil
}

type fenceKey struct{}

// withFence restricts the request made with a context to a term.
func withFence(ctx context.Context, term instance.Term) context.Context {
	return context.WithValue(ctx, fenceKey{}, &fence{term: term})
}

// fencedClient checks the fence of a request each time that a connection writes a part of it. EC2
// does not carry out a request whose end is missing: the signature covers all of it.
type fencedClient struct{ inner aws.HTTPClient }

// newFencedClient wraps a client. If it cannot intercept that client's connections, it checks only
// before each request.
func newFencedClient(client aws.HTTPClient) *fencedClient {
	switch c := client.(type) {
	case *awshttp.BuildableClient:
		// Its read timeout would wrap the connections; each call has its own.
		return &fencedClient{c.WithReadTimeout(0).WithTransportOptions(fenceConnections)}
	case *http.Client:
		if transport, ok := c.Transport.(*http.Transport); ok {
			fenced := *c
			transport = transport.Clone()
			fenceConnections(transport)
			fenced.Transport = transport
			return &fencedClient{&fenced}
		}
	}
	return &fencedClient{client}
}

// fenceConnections makes a transport use fenced connections, each for one request at a time.
func fenceConnections(t *http.Transport) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2, t.TLSNextProto = false, nil
	if t.TLSClientConfig != nil { // to clone a transport adds HTTP/2
		t.TLSClientConfig = t.TLSClientConfig.Clone()
		t.TLSClientConfig.NextProtos = nil
	}
	t.DialContext = fencedDial(t.DialContext)
	if t.DialTLSContext != nil {
		t.DialTLSContext = fencedDial(t.DialTLSContext)
	}
}

func fencedDial(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &fencedConn{Conn: conn}, nil
	}
}

// fencedConn is a connection that carries one request at a time.
type fencedConn struct {
	net.Conn
	// fence belongs to the current request; nil for none.
	fence atomic.Pointer[fence]
}

func (c *fencedConn) Write(p []byte) (int, error) {
	if err := c.fence.Load().check(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Do makes a request.
func (c *fencedClient) Do(req *http.Request) (*http.Response, error) {
	f, _ := req.Context().Value(fenceKey{}).(*fence)
	if err := f.check(); err != nil {
		return nil, err
	}
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { // before anything of the request is written
			if conn := fencedUnder(got.Conn); conn != nil {
				conn.fence.Store(f)
			}
		},
	})
	resp, err := c.inner.Do(req.WithContext(ctx))
	if err != nil && f != nil {
		if refused := f.refused.Load(); refused != nil {
			return nil, refused
		}
	}
	return resp, err
}

// fencedUnder returns the fenced connection under a connection, possibly of TLS; nil for none.
func fencedUnder(conn net.Conn) *fencedConn {
	for {
		switch c := conn.(type) {
		case *fencedConn:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
