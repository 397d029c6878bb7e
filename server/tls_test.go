package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/certwatch"
	"github.com/instanced/instanced/internal/devcert"
	"github.com/instanced/instanced/internal/policy"
	"github.com/instanced/instanced/server/servertest"
)

const serverName = "instanced.test"

func newAuthority(t testing.TB) *devcert.Authority {
	t.Helper()
	a, err := devcert.NewAuthority(t.Name(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *devcert.Authority, complete func(*x509.Certificate)) devcert.Pair {
	t.Helper()
	pair, err := a.Issue("test", complete)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func forServer(c *x509.Certificate) {
	c.DNSNames, c.ExtKeyUsage = []string{serverName}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// forClient completes the certificate of a client with these URIs.
func forClient(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		for _, text := range uris {
			uri, err := url.Parse(text)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, uri)
		}
	}
}

// secured is a server with TLS, and the files that it has its certificates from.
type secured struct {
	*servertest.Server
	t         *testing.T
	authority *devcert.Authority
	dir       string
	address   string
}

// serveTLS starts a server whose certificates are in files, which it watches.
func serveTLS(t *testing.T, opts servertest.Options) *secured {
	t.Helper()
	s := &secured{t: t, authority: newAuthority(t), dir: t.TempDir()}
	s.put(issue(t, s.authority, forServer), s.authority.Cert)
	watcher, err := certwatch.New(certwatch.Config{
		CertFile: filepath.Join(s.dir, "tls.crt"), KeyFile: filepath.Join(s.dir, "tls.key"), ClientCAFile: filepath.Join(s.dir, "ca.crt"),
		Logger: opts.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { watcher.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	if opts.TLS == nil {
		opts.TLS = watcher.Config
	}
	s.Server = servertest.New(t, opts)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = lis.Addr().String()
	s.Serve(lis)
	return s
}

// put replaces the files.
func (s *secured) put(pair devcert.Pair, clientCAs []byte) {
	s.t.Helper()
	for name, data := range map[string][]byte{"tls.crt": pair.Cert, "tls.key": pair.Key, "ca.crt": clientCAs} {
		temporary := filepath.Join(s.dir, "."+name)
		if err := errors.Join(os.WriteFile(temporary, data, 0o600), os.Rename(temporary, filepath.Join(s.dir, name))); err != nil {
			s.t.Fatal(err)
		}
	}
}

// clientTLS is the configuration of a client with these certificates that trusts a server.
func clientTLS(t testing.TB, server *devcert.Authority, pairs ...devcert.Pair) *tls.Config {
	t.Helper()
	config := &tls.Config{ServerName: serverName, RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(server.Cert)
	for _, pair := range pairs {
		certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		// Unlike Certificates, this is sent whatever the server asks for.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	return config
}

func (s *secured) dial(config *tls.Config) *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *secured) client(uri string) *grpc.ClientConn {
	s.t.Helper()
	return s.dial(clientTLS(s.t, s.authority, issue(s.t, s.authority, forClient(uri))))
}

// start starts an instance and returns who is recorded as the cause.
func causeOfStart(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	api := instancedv1.NewInstanceServiceClient(conn)
	started, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id(0)}})
	if err != nil {
		return "", err
	}
	events, err := api.ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: []string{id(0)}, AfterCursor: started.GetCursor()})
	if err != nil {
		return "", err
	}
	if len(events.GetEvents()) == 0 {
		return "", errors.New("there is no event")
	}
	return events.GetEvents()[0].GetCause().GetPrincipal(), nil
}

func TestTheClientCertificateSaysWhoCalls(t *testing.T) {
	t.Parallel()
	const spiffe = "spiffe://example.org/ns/ci/sa/%72unner"
	named := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			forClient()(c)
			c.DNSNames = names
		}
	}
	for name, c := range map[string]struct {
		complete func(*x509.Certificate)
		want     string
		problem  string // in the error, if there is one
	}{
		"a SPIFFE ID, as it is": {complete: forClient(spiffe), want: "x509:" + spiffe},
		"a DNS name":            {complete: named("CI.example.org"), want: "x509:ci.example.org"},
		"a URI before DNS names": {complete: func(c *x509.Certificate) {
			forClient(spiffe)(c)
			c.DNSNames = []string{"a.example.org", "b.example.org"}
		}, want: "x509:" + spiffe},
		"several URIs":      {complete: forClient("spiffe://example.org/a", "spiffe://example.org/b"), problem: "has 2 URI SANs"},
		"several DNS names": {complete: named("a.example.org", "b.example.org"), problem: "no URI SAN and 2 DNS SANs"},
		"no SAN":            {complete: forClient(), problem: "neither a URI SAN nor a DNS SAN"},
		"an address only": {complete: func(c *x509.Certificate) {
			forClient()(c)
			c.IPAddresses = []net.IP{{127, 0, 0, 1}}
		}, problem: "neither a URI SAN nor a DNS SAN"},
		"a wildcard":                     {complete: named("*.example.org"), problem: "is not the name of a host"},
		"a DNS name that spells a URI":   {complete: named("spiffe:..example.org"), problem: "is not the name of a host"},
		"a URI that spells a DNS name":   {complete: forClient("//example.org"), problem: "no scheme"},
		"a long URI":                     {complete: forClient("spiffe://example.org/" + strings.Repeat("a", 512)), problem: "at most 512"},
		"a URI as long as it may be":     {complete: forClient("spiffe://example.org/" + strings.Repeat("a", 491)), want: "x509:spiffe://example.org/" + strings.Repeat("a", 491)},
		"a claimed principal is ignored": {complete: forClient(spiffe), want: "x509:" + spiffe},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log logBuffer
			srv := serveTLS(t, servertest.Options{Fleet: fleet(1), Logger: log.logger()})
			conn := srv.dial(clientTLS(t, srv.authority, issue(t, srv.authority, c.complete)))
			got, err := causeOfStart(as(patient(t), "mallory", "request-1"), conn)
			if c.problem == "" {
				if err != nil || got != c.want {
					t.Errorf("the principal is %q, %v; want %q", got, err, c.want)
				}
				if line := lineWith(&log, "request-1"); !strings.Contains(line, " principal="+c.want) {
					t.Errorf("the log does not say who called: %s", line)
				}
				return
			}
			wantRefusal(t, err, codes.Unauthenticated, "CERTIFICATE_UNUSABLE")
			if err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("the error does not say %q: %v", c.problem, err)
			}
			watching, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(patient(t), &instancedv1.WatchInstancesRequest{})
			if err == nil {
				_, err = watching.Recv()
			}
			wantRefusal(t, err, codes.Unauthenticated, "CERTIFICATE_UNUSABLE")
		})
	}
}

func TestAHandshakeFailsWithoutAGoodCertificate(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := serveTLS(t, servertest.Options{Fleet: fleet(1), Logger: log.logger()})
	other := newAuthority(t)
	good := issue(t, srv.authority, forClient("spiffe://example.org/a"))
	oldTLS := func(version uint16) *tls.Config {
		config := clientTLS(t, srv.authority, good)
		config.MinVersion, config.MaxVersion = version, version
		return config
	}
	// Over TCP, so that a rejected handshake is seen by the read that follows it.
	for name, config := range map[string]*tls.Config{
		"no certificate":    clientTLS(t, srv.authority),
		"another authority": clientTLS(t, srv.authority, issue(t, other, forClient("spiffe://example.org/a"))),
		"an expired certificate": clientTLS(t, srv.authority, issue(t, srv.authority, func(c *x509.Certificate) {
			forClient("spiffe://example.org/a")(c)
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		})),
		"a certificate of a server": clientTLS(t, srv.authority, issue(t, srv.authority, forServer)),
		"TLS 1.0":                   oldTLS(tls.VersionTLS10),
		"TLS 1.1":                   oldTLS(tls.VersionTLS11),
		"TLS 1.2":                   oldTLS(tls.VersionTLS12),
	} {
		t.Run(name, func(t *testing.T) {
			config.NextProtos = []string{"h2"}
			conn, err := (&tls.Dialer{Config: config}).DialContext(patient(t), "tcp", srv.address)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the server says %d bytes, %v; want an alert", n, err)
			}
		})
	}
	t.Run("no ALPN", func(t *testing.T) {
		conn, err := (&tls.Dialer{Config: clientTLS(t, srv.authority, good)}).DialContext(patient(t), "tcp", srv.address)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the server says %d bytes, %v", n, err)
		}
	})
	if _, err := causeOfStart(patient(t), srv.client("spiffe://example.org/a")); err != nil {
		t.Errorf("with a good certificate: %v", err)
	}
}

func TestAMismatchOfTLSIsLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	plain := func(ctx context.Context, address string) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, err = instancedv1.NewInstanceServiceClient(conn).GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{})
		wantCode(t, err, codes.Unavailable)
	}
	t.Run("plaintext to TLS", func(t *testing.T) {
		t.Parallel()
		var log logBuffer
		srv := serveTLS(t, servertest.Options{Fleet: fleet(1), Logger: log.logger()})
		for range 5 {
			plain(patient(t), srv.address)
		}
		if n := strings.Count(log.String(), "does not speak TLS"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
	})
	t.Run("TLS to plaintext", func(t *testing.T) {
		t.Parallel()
		var log logBuffer
		srv := servertest.New(t, servertest.Options{Fleet: fleet(1), Logger: log.logger()})
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv.Serve(lis)
		for range 5 {
			_, err := (&tls.Dialer{Config: clientTLS(t, newAuthority(t))}).DialContext(patient(t), "tcp", lis.Addr().String())
			if err == nil {
				t.Fatal("the handshake succeeds")
			}
		}
		if n := strings.Count(log.String(), "speaks TLS"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
	})
}

// TestRotationFailsNoCall replaces the certificate of the server while clients connect and call.
func TestRotationFailsNoCall(t *testing.T) {
	t.Parallel()
	srv := serveTLS(t, servertest.Options{Fleet: fleet(1)})
	config := clientTLS(t, srv.authority, issue(t, srv.authority, forClient("spiffe://example.org/a")))
	var calls atomic.Int64
	var serials sync.Map
	config.VerifyConnection = func(state tls.ConnectionState) error {
		serials.Store(state.PeerCertificates[0].SerialNumber.String(), true)
		return nil
	}
	stop := make(chan struct{})
	var callers sync.WaitGroup
	defer callers.Wait()
	defer sync.OnceFunc(func() { close(stop) })()
	kept := srv.dial(config)
	for caller := range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn := kept
				if caller > 0 {
					conn = srv.dial(config)
				}
				_, err := instancedv1.NewInstanceServiceClient(conn).GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
				if conn != kept {
					_ = conn.Close()
				}
				if err != nil {
					t.Errorf("a call during a rotation: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	seen := func() (n int) {
		serials.Range(func(any, any) bool { n++; return true })
		return n
	}
	eventually := func(what string, is func() bool) {
		t.Helper()
		for ctx := patient(t); !is(); time.Sleep(5 * time.Millisecond) {
			if ctx.Err() != nil || t.Failed() {
				t.Fatalf("not %s", what)
			}
		}
	}
	for n := 1; n <= 3; n++ {
		eventually(fmt.Sprintf("certificate %d in use", n), func() bool { return seen() == n })
		srv.put(issue(t, srv.authority, forServer), srv.authority.Cert)
	}
	eventually("the last certificate in use", func() bool { return seen() == 4 })
	before := calls.Load()
	eventually("further calls", func() bool { return calls.Load() > before+20 })
}

func TestAWithdrawnAuthorityEndsItsConnections(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := serveTLS(t, servertest.Options{Fleet: fleet(1), Logger: log.logger()})
	other := newAuthority(t)
	pair := issue(t, srv.authority, forServer)
	srv.put(pair, append(append([]byte{}, srv.authority.Cert...), other.Cert...))
	config := clientTLS(t, srv.authority, issue(t, other, forClient("spiffe://example.org/b")))
	for ctx := patient(t); ; {
		conn := srv.dial(config)
		_, err := instancedv1.NewInstanceServiceClient(conn).GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{})
		_ = conn.Close()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the added authority is not trusted: %v", err)
		}
	}
	stays, goes := srv.client("spiffe://example.org/a"), srv.dial(config)
	staying := watchOn(t, stays, &instancedv1.WatchInstancesRequest{})
	stream, err := instancedv1.NewInstanceServiceClient(goes).WatchInstances(patient(t), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := instancedv1.NewInstanceServiceClient(goes).WaitInstances(patient(t), &instancedv1.WaitInstancesRequest{
			InstanceIds: []string{id(0)}, States: []instancedv1.InstanceStateName{terminated},
		})
		waiting <- err
	}()
	srv.put(pair, srv.authority.Cert)
	var last *instancedv1.WatchInstancesResponse
	for {
		msg, err := stream.Recv()
		if err != nil {
			wantRefusal(t, err, codes.Unavailable, "REAUTHENTICATE")
			break
		}
		last = msg
	}
	if last.GetGoodbye().GetReason() != instancedv1.GoodbyeReason_GOODBYE_REASON_REAUTHENTICATE || last.GetCursor() == "" {
		t.Errorf("the last message is %v", last)
	}
	if err := <-waiting; status.Code(err) != codes.Unavailable {
		t.Errorf("the wait ends with %v", err)
	}
	_, err = instancedv1.NewInstanceServiceClient(goes).GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
	wantCode(t, err, codes.Unavailable)
	if staying == nil {
		t.Fatal("there is no other stream")
	}
	if _, err := causeOfStart(patient(t), stays); err != nil {
		t.Errorf("a connection of the other authority: %v", err)
	}
}

func TestAllowAuthenticatedPermitsToReadStartAndStop(t *testing.T) {
	t.Parallel()
	srv := serveTLS(t, servertest.Options{Fleet: fleet(1), Policy: policy.AllowAuthenticated})
	conn := srv.client("spiffe://example.org/a")
	api, simulator := instancedv1.NewInstanceServiceClient(conn), instancedv1.NewSimulatorServiceClient(conn)
	ctx, ids := patient(t), []string{id(0)}
	denied := func(what string, err error) {
		t.Helper()
		wantRefusal(t, err, codes.PermissionDenied, "UNAUTHORIZED_OPERATION")
		if err != nil && status.Convert(err).Message() != "You are not authorized to perform this operation." {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := causeOfStart(ctx, conn); err != nil {
		t.Errorf("start and history: %v", err)
	}
	_, err := api.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{InstanceIds: ids, States: []instancedv1.InstanceStateName{running}})
	if err != nil {
		t.Errorf("wait: %v", err)
	}
	watchOn(t, conn, &instancedv1.WatchInstancesRequest{})
	_, err = api.RebootInstances(ctx, &instancedv1.RebootInstancesRequest{InstanceIds: ids})
	denied("reboot", err)
	_, err = api.RebootInstances(ctx, &instancedv1.RebootInstancesRequest{InstanceIds: ids, DryRun: true})
	denied("a dry run of reboot", err)
	_, err = api.TerminateInstances(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: ids})
	denied("terminate", err)
	_, err = api.TerminateInstances(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: []string{"i-0123456789abcdef9"}, ClientToken: "t"})
	denied("terminate of an unknown instance", err)
	_, err = api.TerminateInstances(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: []string{"foobar"}})
	wantCode(t, err, codes.InvalidArgument) // the shape comes first
	_, err = simulator.ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{InstanceIds: ids, SetTags: map[string]string{"a": "b"}}}})
	denied("a change from outside", err)
	_, err = simulator.CreateInstances(ctx, fleet(2))
	denied("new instances", err)
	_, err = simulator.SetFaults(ctx, &instancedv1.SetFaultsRequest{})
	denied("faults", err)
	_, err = simulator.Reset(ctx, &instancedv1.ResetRequest{})
	denied("reset", err)
	if _, err := api.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: ids}); err != nil {
		t.Errorf("stop: %v", err)
	}
	described, err := api.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{})
	if err != nil || len(described.GetInstances()) != 1 {
		t.Errorf("describe: %v, %v", described, err)
	}
}

// TestAClaimedNameIsNeverAVerifiedOne: whoever may claim names, on loopback in plaintext, cannot
// claim that of a certificate.
func TestAClaimedNameIsNeverAVerifiedOne(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1)})
	for _, name := range []string{"x509:spiffe://example.org/a", "oidc:https://issuer.example#alice"} {
		_, err := srv.Instances().GetServerInfo(as(patient(t), name, "r"), &instancedv1.GetServerInfoRequest{})
		wantRefusal(t, err, codes.InvalidArgument, "INVALID_METADATA")
	}
	if _, err := srv.Instances().GetServerInfo(as(patient(t), "spiffe://example.org/a", "r"), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Error(err)
	}
}
