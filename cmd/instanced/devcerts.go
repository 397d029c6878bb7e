package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/devcert"
)

const (
	// devCertLifetime is how long the certificates of dev-certs are valid.
	devCertLifetime = 7 * 24 * time.Hour
	// devTrustDomain is the trust domain of the clients' SPIFFE IDs.
	devTrustDomain = "instanced.example"
)

func newDevCertsCommand(t *terminal) *cobra.Command {
	return &cobra.Command{
		Use:   "dev-certs DIR [CLIENT...]",
		Short: "Make certificates to try TLS with",
		Long: `Dev-certs makes a certificate authority, a certificate of the service for localhost and the
names and addresses of this machine, and one for each client (default: client), which names it
by a SPIFFE ID such as spiffe://instanced.example/client. It writes them into DIR, with keys
that only their owner can read, and prints how to use them. Files that exist are not replaced.

The certificates are valid for 7 days and for development only. The key of the authority is
not kept, so no further ones can be made.`,
		Example: t.Examples(
			"instanced dev-certs certs",
			"instanced dev-certs certs alice bob",
		),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("dev-certs needs a directory to write to, such as certs")
			}
			seen := map[string]bool{"ca": true, "server": true}
			for _, name := range args[1:] {
				if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || name == "" {
					return cli.Usagef("%q is not the name of a client: want lower-case letters, digits and hyphens", name)
				}
				if seen[name] {
					return cli.Usagef("the name %q is taken; give another one", name)
				}
				seen[name] = true
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			t.Accept()
			clients := args[1:]
			if len(clients) == 0 {
				clients = []string{"client"}
			}
			return t.makeDevCerts(args[0], clients)
		},
	}
}

// makeDevCerts writes the certificates and says how to use them.
func (t *terminal) makeDevCerts(dir string, clients []string) error {
	authority, err := devcert.NewAuthority("instanced development", devCertLifetime)
	if err != nil {
		return err
	}
	type file struct {
		name string
		data []byte
		mode fs.FileMode
	}
	files := []file{{"ca.pem", authority.Cert, 0o644}}
	issue := func(name string, complete func(*x509.Certificate)) error {
		pair, err := authority.Issue(name, complete)
		files = append(files, file{name + ".pem", pair.Cert, 0o644}, file{name + "-key.pem", pair.Key, 0o600})
		return err
	}
	if err := issue("server", hereAsServer); err != nil {
		return err
	}
	for _, name := range clients {
		if err := issue(name, func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: devTrustDomain, Path: "/" + name}}
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory %s: %w", dir, innermost(err))
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); !errors.Is(err, fs.ErrNotExist) {
			return cli.Usagef("%s exists already; choose another directory, or remove it", filepath.Join(dir, f.name))
		}
	}
	for _, f := range files {
		if err := createFile(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return fmt.Errorf("cannot write %s: %w", filepath.Join(dir, f.name), innermost(err))
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	_, err = fmt.Fprintf(t.Stdout, `Certificates for development are in %[1]s, valid for %[2]d days.

Serve with them, on all addresses of this machine:
  %[3]s serve --listen 0.0.0.0:50051 --tls-cert %[4]s --tls-key %[5]s --tls-client-ca %[6]s --policy allow-authenticated

Call it as spiffe://%[7]s/%[8]s:
  %[3]s describe --server localhost:50051 --tls-ca %[6]s --tls-cert %[9]s --tls-key %[10]s
`, dir, devCertLifetime/(24*time.Hour), invocation(), in("server.pem"), in("server-key.pem"), in("ca.pem"),
		devTrustDomain, clients[0], in(clients[0]+".pem"), in(clients[0]+"-key.pem"))
	return err
}

// hereAsServer completes the certificate of a server on this machine.
func hereAsServer(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c.DNSNames = []string{"localhost"}
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		c.DNSNames = append(c.DNSNames, name)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		addresses = nil // localhost has to do
	}
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, address := range addresses {
		if ip, ok := address.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			c.IPAddresses = append(c.IPAddresses, ip.IP)
		}
	}
}

// createFile creates a file that does not exist yet.
func createFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
