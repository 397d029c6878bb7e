package ec2query

import (
	"context"
	"net"
	"net/http"

	"github.com/instanced/instanced/internal/admission"
)

// listener admits connections, each of which has an account.
type listener struct {
	net.Listener
	admission *admission.Admission
}

// connection is a connection and its account.
type connection struct {
	net.Conn
	account *admission.Connection
}

// Accept accepts the next connection for which there is room.
func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if account, err := l.admission.Connect(conn); err == nil {
			return connection{conn, account}, nil
		}
		_ = conn.Close() // nothing can be done about an error
	}
}

// Close closes the connection and its account.
func (c connection) Close() error {
	c.account.Disconnect()
	return c.Conn.Close()
}

type accountKey struct{}

func withAccount(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, accountKey{}, conn.(connection).account)
}

// admit admits a call after its caller was identified. Calls that did not come through
// [Server.Serve] are not limited.
func (s *Server) admit(r *http.Request, principal string) (admission.Ticket, error) {
	account, ok := r.Context().Value(accountKey{}).(*admission.Connection)
	if !ok {
		return admission.Ticket{}, nil
	}
	return account.Admit(principal)
}
