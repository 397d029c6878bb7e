package journal

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// loginTimeout is how long a login may take: etcd makes it slow on purpose.
	loginTimeout = 5 * time.Second
	// loginInterval is how long a login is not tried again after etcd has rejected one.
	loginInterval = time.Second
)

// login keeps the connections to one member logged in. Etcd's own client would log in with each
// lease renewal, and would fail the request that finds its token expired.
//
// A token is valid until it was not used for some time (5 minutes, unless etcd is told otherwise),
// the member restarts, or users are changed. A request whose token is not valid has had no effect, so
// it is sent again with a new one.
type login struct {
	security *security

	mu sync.Mutex
	// token is what was logged in with; known is false before that. It is empty for an etcd
	// without authentication.
	token string
	known bool
	// attempt is the login under way, or the last one; nil before that.
	attempt *loginAttempt
}

// loginAttempt may be read when done is closed.
type loginAttempt struct {
	done  chan struct{}
	token string
	err   error
	ended time.Time
}

// unary adds the token to a request, and to a second attempt a new one.
func (l *login) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pb.Auth_Authenticate_FullMethodName {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	for retried := false; ; retried = true {
		token, err := l.get(ctx, cc, opts)
		if err != nil {
			return err
		}
		err = invoker(withToken(ctx, token), method, req, reply, cc, opts...)
		if !tokenRejected(err) || retried {
			return err
		}
		l.discard(token)
	}
}

// stream adds the token to a stream. What etcd says of it comes later.
func (l *login) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	token, err := l.get(ctx, cc, opts)
	if err != nil {
		return nil, err
	}
	s, err := streamer(withToken(ctx, token), desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &loggedInStream{ClientStream: s, login: l, token: token}, nil
}

// loggedInStream has the next stream log in again if this one's token is rejected.
type loggedInStream struct {
	grpc.ClientStream
	login *login
	token string
}

// RecvMsg implements [grpc.ClientStream].
func (s *loggedInStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if tokenRejected(err) {
		s.login.discard(s.token)
	}
	return err
}

func withToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// get returns the token, and logs in if there is none. One login serves all that wait for it, and
// goes on when they do not.
func (l *login) get(ctx context.Context, cc *grpc.ClientConn, opts []grpc.CallOption) (string, error) {
	l.mu.Lock()
	if l.known {
		defer l.mu.Unlock()
		return l.token, nil
	}
	a := l.attempt
	if a == nil || a.over() && (!denied(a.err) || time.Since(a.ended) > loginInterval) {
		a = &loginAttempt{done: make(chan struct{})}
		l.attempt = a
		go l.try(a, cc, waitsForReady(opts))
	}
	l.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	return a.token, a.err
}

// waitsForReady reports whether a request waits until there is a connection.
func waitsForReady(opts []grpc.CallOption) bool {
	return slices.ContainsFunc(opts, func(o grpc.CallOption) bool {
		f, ok := o.(grpc.FailFastCallOption)
		return ok && !f.FailFast
	})
}

func (a *loginAttempt) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// try logs in. It ends when the connection is closed, at the latest.
func (l *login) try(a *loginAttempt, cc *grpc.ClientConn, waitForReady bool) {
	token, err := l.authenticate(cc, waitForReady)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.token, l.known = token, true
	}
	a.token, a.err, a.ended = token, err, time.Now()
	close(a.done)
}

func (l *login) authenticate(cc *grpc.ClientConn, waitForReady bool) (string, error) {
	password, err := l.security.password()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), loginTimeout)
	defer cancel()
	resp, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: l.security.Username, Password: password}, grpc.WaitForReady(waitForReady))
	if errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled) {
		return "", nil
	}
	return resp.GetToken(), err
}

// discard has the next request log in, unless one has since.
func (l *login) discard(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token == token {
		l.token, l.known = "", false
	}
}

// tokenRejected reports whether etcd has rejected a request because of its token, or its lack of
// one, and did nothing.
func tokenRejected(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// denied reports whether etcd knows who asks, or does not, and does not permit it.
func denied(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrAuthFailed) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// explainDenied returns a sentence for an error that denied reports.
func (s *EtcdSecurity) explainDenied(err error, prefix string) error {
	err = rpctypes.Error(err)
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed) && s.PasswordFile != "":
		return errors.New("it does not accept the user of --etcd-username with the password in --etcd-password-file " + s.PasswordFile)
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return errors.New("it does not accept the user of --etcd-username with the password in INSTANCED_ETCD_PASSWORD")
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return errors.New("it asks for a user; name one with --etcd-username, and its password with --etcd-password-file")
	case s.Username != "":
		return errors.New("the user of --etcd-username, " + s.Username + ", may not read and write all keys below --etcd-prefix " + prefix +
			"; grant it a role that may (etcdctl role grant-permission ROLE readwrite --prefix=true " + prefix + ")")
	}
	return errors.New("it does not let the user that the certificate of --etcd-cert names read and write all keys below --etcd-prefix " + prefix)
}
