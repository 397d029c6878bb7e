package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// reauthenticateInterval is how often open connections are checked for a client certificate
	// that has expired or whose authority was withdrawn.
	reauthenticateInterval = 15 * time.Second
	// reauthenticateGrace is how long the calls on such a connection may take to end.
	reauthenticateGrace = 5 * time.Second
	// idleInterval is how often it is checked whether they have.
	idleInterval = 20 * time.Millisecond
	// lingerTimeout and lingerBytes bound what is still read after a failed handshake.
	lingerTimeout = time.Second
	lingerBytes   = 64 << 10
	// mismatchLogInterval is the minimum interval between log lines about failed handshakes.
	mismatchLogInterval = time.Minute
)

// transportCredentials returns the credentials of the transport: TLS with the present
// configuration, or plaintext without one.
func transportCredentials(present func() *tls.Config) credentials.TransportCredentials {
	if present == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         present().MinVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return present(), nil },
	})
}

// tlsClient is the client of a connection with TLS.
type tlsClient struct {
	// principal is "" if the certificate names no principal, for the reason in problem.
	principal string
	problem   error

	// certificates are what the client sent, its own first.
	certificates []*x509.Certificate
	validity     atomic.Pointer[validity]

	// revoked is canceled when the certificate is no longer valid; not the context of a call.
	revoked context.Context
	revoke  context.CancelFunc
}

// validity is until when a certificate is valid, by the authorities that were in force.
type validity struct {
	authorities *x509.CertPool
	until       time.Time
}

// newTLSClient returns the client of a connection after its handshake.
func newTLSClient(state tls.ConnectionState, authorities *x509.CertPool) *tlsClient {
	c := &tlsClient{certificates: state.PeerCertificates}
	c.revoked, c.revoke = context.WithCancel(context.Background())
	if len(state.VerifiedChains) == 0 {
		c.problem = errors.New("it was not verified")
	} else {
		c.principal, c.problem = certificatePrincipal(state.PeerCertificates[0])
	}
	if c.problem != nil {
		c.principal = ""
		return c
	}
	c.principal = instance.CertificatePrincipal(c.principal)
	c.validity.Store(&validity{authorities, validUntil(state.VerifiedChains)})
	return c
}

// validUntil returns when the last of some chains expires.
func validUntil(chains [][]*x509.Certificate) (latest time.Time) {
	for _, chain := range chains {
		first := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(latest) {
			latest = first
		}
	}
	return latest
}

// valid reports whether the certificate is valid now. It is verified again only if there are
// other authorities than before.
func (c *tlsClient) valid(authorities *x509.CertPool, now time.Time) bool {
	v := c.validity.Load()
	if v == nil {
		return true // it names no principal, so every call is refused
	}
	if v.authorities != authorities {
		v = &validity{authorities: authorities}
		others := x509.NewCertPool()
		for _, other := range c.certificates[1:] {
			others.AddCert(other)
		}
		chains, err := c.certificates[0].Verify(x509.VerifyOptions{
			Roots: authorities, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err == nil {
			v.until = validUntil(chains)
		}
		c.validity.Store(v)
	}
	return !now.After(v.until)
}

// refusal returns the error for the calls of a client that is not authenticated, or no longer.
func (c *tlsClient) refusal() error {
	switch {
	case c.problem != nil:
		return &instance.Error{
			Kind:    instance.KindUnauthenticated,
			Reason:  instance.ReasonCertificateUnusable,
			Message: "the client certificate is valid but does not say who calls: " + c.problem.Error(),
		}
	case c.revoked.Err() != nil:
		return errReauthenticate(idleInterval)
	}
	return nil
}

// errReauthenticate is the error of calls on a connection whose certificate is no longer valid.
func errReauthenticate(retryAfter time.Duration) *instance.Error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonReauthenticate,
		Message:    "the client certificate has expired, or its authority is no longer trusted: connect again with a valid one",
		RetryAfter: retryAfter,
	}
}

// tlsConnections are the open connections with TLS. It is safe for concurrent use.
type tlsConnections struct {
	mu  sync.Mutex
	all map[*connection]struct{}
}

func (t *tlsConnections) add(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = make(map[*connection]struct{})
	}
	t.all[c] = struct{}{}
}

func (t *tlsConnections) remove(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, c)
}

// revokeInvalid ends the connections whose certificate is no longer valid.
func (t *tlsConnections) revokeInvalid(authorities *x509.CertPool, now time.Time) {
	t.mu.Lock()
	open := make([]*connection, 0, len(t.all))
	for c := range t.all {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open {
		if c.tls.revoked.Err() == nil && !c.tls.valid(authorities, now) {
			c.tls.revoke()
			go c.closeIdle(reauthenticateGrace)
		}
	}
}

// closeIdle closes the connection when its calls have ended and their responses are sent, or
// when the grace is over.
func (c *connection) closeIdle(grace time.Duration) {
	ticker := time.NewTicker(idleInterval)
	defer ticker.Stop()
	// Twice, since the transport ends a call a moment after its handler.
	idle := 0
	for end := time.Now().Add(grace); idle < 2 && !c.closed.Load() && time.Now().Before(end); {
		<-ticker.C
		if idle++; !c.account.Idle() || !c.admission.unsent.sent(c) {
			idle = 0
		}
	}
	_ = c.Close() // nothing can be done about an error
}

// reauthenticate ends connections whose certificate is no longer valid, until stop is closed.
func (s *Server) reauthenticate(stop <-chan struct{}) {
	if s.tls == nil {
		return
	}
	ticker := time.NewTicker(reauthenticateInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.conns.tls.revokeInvalid(s.tls().ClientCAs, now)
		case <-stop:
			return
		}
	}
}

// lingeringConn closes a connection whose handshake has failed only after the client has read
// why: if it is closed while what the client has sent is unread, TCP discards what was sent to
// the client.
type lingeringConn struct {
	net.Conn
	established atomic.Bool
}

// Close closes the connection.
func (c *lingeringConn) Close() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok && !c.established.Load() && tcp.CloseWrite() == nil {
		_ = tcp.SetReadDeadline(time.Now().Add(lingerTimeout))
		_, _ = io.CopyN(io.Discard, tcp, lingerBytes)
	}
	return c.Conn.Close()
}

// mismatches logs connections that fail before their first call, at most once an interval. It
// is safe for concurrent use.
type mismatches struct {
	mu       sync.Mutex
	count    int
	loggedAt time.Time
}

func (m *mismatches) log(log *slog.Logger, from net.Addr, message string, err error) {
	m.mu.Lock()
	m.count++
	count, now := m.count, time.Now()
	if !m.loggedAt.IsZero() && now.Sub(m.loggedAt) < mismatchLogInterval {
		m.mu.Unlock()
		return
	}
	m.count, m.loggedAt = 0, now
	m.mu.Unlock()
	log.Warn(message, "connections", count, "last_from", from.String(), "last_error", err)
}

var errTLSOnPlaintext = errors.New("the client speaks TLS, but this port is plaintext")

// handshakeFailed logs a failed handshake. A client that just leaves says nothing.
func (a *connections) handshakeFailed(from net.Addr, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		err = errors.New("the client does not speak TLS, but this port does")
	}
	a.mismatches.log(a.log, from, "TLS handshakes fail", err)
}
