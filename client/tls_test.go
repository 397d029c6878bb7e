package client_test

import (
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

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/devcert"
	"github.com/instanced/instanced/server/servertest"
)

// TestTLSFilesAreReadAgain calls a service as one client and, after the files were replaced, as
// another. Files that are broken in between change nothing.
func TestTLSFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	authority, err := devcert.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(complete func(*x509.Certificate)) devcert.Pair {
		t.Helper()
		pair, err := authority.Issue("test", complete)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	pair := issue(func(c *x509.Certificate) { c.DNSNames = []string{"instanced.test"} })
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

	dir := t.TempDir()
	put := func(pair devcert.Pair) {
		t.Helper()
		for name, data := range map[string][]byte{"ca.pem": authority.Cert, "cert.pem": pair.Cert, "key.pem": pair.Key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	named := func(name string) devcert.Pair {
		t.Helper()
		return issue(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/" + name}} })
	}
	files := client.TLSFiles{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), ServerName: "instanced.test"}
	put(named("alice"))
	creds, err := client.TLSFromFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	// wantPrincipal calls on a new connection with the same credentials.
	wantPrincipal := func(id, want string) {
		t.Helper()
		c, err := client.Dial(lis.Addr().String(), client.Options{TransportCredentials: creds, Principal: "mallory"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		started, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for page, err := range c.Events(t.Context(), &instancedv1.ListEventsRequest{InstanceIds: []string{id}, AfterCursor: started.GetCursor()}) {
			if err != nil {
				t.Fatal(err)
			}
			if got == "" && len(page.GetEvents()) > 0 {
				got = page.GetEvents()[0].GetCause().GetPrincipal()
			}
		}
		if got != want {
			t.Errorf("the principal is %q, want %q", got, want)
		}
	}
	wantPrincipal("i-0000000a", "x509:spiffe://example.org/alice")
	put(devcert.Pair{Cert: pair.Cert, Key: []byte("no key")})
	wantPrincipal("i-0000000b", "x509:spiffe://example.org/alice")
	put(named("bob"))
	wantPrincipal("i-0000000c", "x509:spiffe://example.org/bob")
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
