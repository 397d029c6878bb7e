package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/devcert"
	"github.com/instanced/instanced/server/servertest"
)

// secured is a service with TLS, and the files of a client.
type secured struct {
	t         *testing.T
	authority *devcert.Authority
	address   string
	dir       string
	creds     credentials.TransportCredentials
}

func serveTLS(t *testing.T) *secured {
	t.Helper()
	authority, err := devcert.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue("test", func(c *x509.Certificate) { c.DNSNames = []string{"instanced.test"} })
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(authority.Cert)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
	srv := servertest.New(t, servertest.Options{TLS: func() *tls.Config { return config }, Fleet: &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-0000000a"}, {InstanceId: "i-0000000b"}, {InstanceId: "i-0000000c"}},
	}})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	return &secured{t: t, authority: authority, address: lis.Addr().String(), dir: t.TempDir()}
}

// issue issues the certificate of a client.
func (s *secured) issue(name string, change ...func(*x509.Certificate)) devcert.Pair {
	s.t.Helper()
	pair, err := s.authority.Issue("test", func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/" + name}}
		for _, f := range change {
			f(c)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

// put replaces the files.
func (s *secured) put(pair devcert.Pair) {
	s.t.Helper()
	for name, data := range map[string][]byte{"ca.pem": s.authority.Cert, "cert.pem": pair.Cert, "key.pem": pair.Key} {
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// dial returns a client on a new connection; all have the same credentials.
func (s *secured) dial() *client.Client {
	s.t.Helper()
	var err error
	if s.creds == nil {
		s.creds, err = client.TLSFromFiles(client.TLSFiles{
			CA: filepath.Join(s.dir, "ca.pem"), Cert: filepath.Join(s.dir, "cert.pem"), Key: filepath.Join(s.dir, "key.pem"), ServerName: "instanced.test",
		})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := client.Dial(s.address, client.Options{TransportCredentials: s.creds, Principal: "mallory"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// causeOfStart starts an instance and returns who is recorded as the cause.
func causeOfStart(t *testing.T, c *client.Client, id string) string {
	t.Helper()
	started, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	for page, err := range c.Events(t.Context(), &instancedv1.ListEventsRequest{InstanceIds: []string{id}, AfterCursor: started.GetCursor()}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.GetEvents() {
			return e.GetCause().GetPrincipal()
		}
	}
	return ""
}

// TestTLSFilesAreReadAgain calls a service as one client and, after the files were replaced, as
// another. Files that are broken in between change nothing.
func TestTLSFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	s := serveTLS(t)
	for _, c := range []struct {
		pair     devcert.Pair
		id, want string
	}{
		{s.issue("alice"), "i-0000000a", "x509:spiffe://example.org/alice"},
		{devcert.Pair{Cert: s.issue("bob").Cert, Key: []byte("no key")}, "i-0000000b", "x509:spiffe://example.org/alice"},
		{s.issue("bob"), "i-0000000c", "x509:spiffe://example.org/bob"},
	} {
		s.put(c.pair)
		if got := causeOfStart(t, s.dial(), c.id); got != c.want {
			t.Errorf("the principal is %q, want %q", got, c.want)
		}
	}
}

// TestAWatchOutlivesItsCertificate: when the certificate of the connection expires, the watch
// goes on with the one that has replaced it.
func TestAWatchOutlivesItsCertificate(t *testing.T) {
	t.Parallel()
	s := serveTLS(t)
	s.put(s.issue("alice", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Second) }))
	c := s.dial()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	subscribed, said := 0, false
	for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		if goodbye := msg.GetGoodbye(); goodbye != nil {
			said = true
			if goodbye.GetReason() != instancedv1.GoodbyeReason_GOODBYE_REASON_REAUTHENTICATE {
				t.Fatalf("the stream ends with %v", goodbye)
			}
		}
		if msg.GetSubscribed() == nil {
			continue
		}
		if subscribed++; subscribed == 2 {
			break
		}
		s.put(s.issue("alice"))
	}
	if !said {
		t.Error("the first stream has ended without a goodbye")
	}
}

func TestUnusableTLSFilesAreNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files client.TLSFiles
		want  string
	}{
		"no such authority":    {client.TLSFiles{CA: filepath.Join(dir, "none.pem")}, "none.pem: no such file"},
		"an empty authority":   {client.TLSFiles{CA: empty}, "empty.pem has no certificate in PEM"},
		"no such certificate":  {client.TLSFiles{Cert: filepath.Join(dir, "none.pem"), Key: empty}, "none.pem: no such file"},
		"an empty certificate": {client.TLSFiles{Cert: empty, Key: empty}, "cannot use the client certificate " + empty},
		"no key":               {client.TLSFiles{Cert: empty}, "go together"},
	} {
		if _, err := client.TLSFromFiles(c.files); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := client.TLSFromFiles(client.TLSFiles{CA: filepath.Join(dir, "none.pem")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
}
