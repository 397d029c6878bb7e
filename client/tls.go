package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc/credentials"
)

// TLSFiles are PEM files that secure connections. An empty name means none.
type TLSFiles struct {
	// CA has the authorities of the server's certificate; by default the ones of the system.
	CA string
	// Cert has the client certificate, which says who calls, and Key its private key.
	Cert, Key string
	// ServerName is the name that the server's certificate must have; by default the host of
	// the target.
	ServerName string
}

// TLSFromFiles returns credentials for [Options].TransportCredentials. The files are read now
// and again for each connection, so that files that are replaced while the client runs are used
// from the next connection on. If they are unusable then, the last usable ones are used.
func TLSFromFiles(files TLSFiles) (credentials.TransportCredentials, error) {
	if (files.Cert == "") != (files.Key == "") {
		return nil, errors.New("a client certificate and its private key go together: only one of them is given")
	}
	config, err := files.read()
	if err != nil {
		return nil, err
	}
	return &fileCredentials{TransportCredentials: credentials.NewTLS(config), files: files, last: config}, nil
}

// read reads the files.
func (f TLSFiles) read() (*tls.Config, error) {
	config := &tls.Config{ServerName: f.ServerName, MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		text, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("cannot read the authorities of the server: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s has no certificate in PEM", f.CA)
		}
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("cannot use the client certificate %s with the key %s: %w", f.Cert, f.Key, err)
		}
		// Sent even if its authority is not among those that the server names, so that the
		// server can say why it rejects it.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}

// fileCredentials read their files for each handshake.
type fileCredentials struct {
	credentials.TransportCredentials
	files TLSFiles

	mu   sync.Mutex
	last *tls.Config
}

// ClientHandshake implements [credentials.TransportCredentials].
func (c *fileCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.present()).ClientHandshake(ctx, authority, raw)
}

// present returns what is in the files, or was when they could last be used.
func (c *fileCredentials) present() *tls.Config {
	config, err := c.files.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.last = config
	}
	return c.last
}

// Clone implements [credentials.TransportCredentials].
func (c *fileCredentials) Clone() credentials.TransportCredentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &fileCredentials{TransportCredentials: c.TransportCredentials.Clone(), files: c.files, last: c.last}
}
