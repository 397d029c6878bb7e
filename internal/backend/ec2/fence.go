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

// fence lets the bytes of one request pass in the term in which its commands were
// accepted, and refuses them afterwards.
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

// withFence has the request that is made with a context sent in a term only.
func withFence(ctx context.Context, term instance.Term) context.Context {
	return context.WithValue(ctx, fenceKey{}, &fence{term: term})
}

// fencedClient checks the fences of requests: each time that a connection writes any of
// it. A request of which the end was refused is not complete, so that EC2 does not carry
// it out: the signature covers all of it.
type fencedClient struct{ inner aws.HTTPClient }

// newFencedClient returns a client like another one. Where it does not know how that one
// makes its connections, it checks before each request only.
func newFencedClient(client aws.HTTPClient) *fencedClient {
	switch c := client.(type) {
	case *awshttp.BuildableClient:
		// Its own timeouts would hide the connections; each call has one.
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

// fenceConnections has a transport make connections that can be fenced, and use each for
// one request at a time.
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

// fencedConn is a connection that is used for one request after another.
type fencedConn struct {
	net.Conn
	// fence is that of the present request, nil when it needs none.
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

// fencedUnder returns the connection that carries another one, which may be of TLS; nil if
// it is none of ours.
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
