package journal

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// EtcdSecurity is how an external etcd is known, and how this process is known to it. All files
// are read again whenever there is a new connection or a new login.
type EtcdSecurity struct {
	// CAFile has the certificate authorities, in PEM, one of which must have issued the
	// certificate of each member; by default the ones of the system.
	CAFile string
	// CertFile and KeyFile are the certificate of this process and its private key, in PEM; for
	// an etcd that asks for client certificates. Both or neither are set.
	CertFile, KeyFile string
	// ServerName is the name that the certificates of the members must have, by default the host
	// of their endpoint.
	ServerName string
	// Username is the user to log in as; none by default. The password is in PasswordFile, without
	// a line break at its end, or is Password.
	Username, PasswordFile, Password string
}

// maxSecurityFile bounds the files of EtcdSecurity, in bytes.
const maxSecurityFile = 4 << 20

// ConfigError says that a file that [EtcdSecurity] names cannot be used.
type ConfigError struct{ message string }

// Error returns a sentence that names the flag and the file.
func (e *ConfigError) Error() string { return e.message }

func configErrorf(format string, args ...any) error {
	return &ConfigError{fmt.Sprintf(format, args...)}
}

// readSetting reads the file of a flag.
func readSetting(flag, name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, configErrorf("%s: cannot read %s: %v", flag, name, pathless(err))
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxSecurityFile+1))
	switch {
	case err != nil:
		return nil, configErrorf("%s: cannot read %s: %v", flag, name, pathless(err))
	case len(data) > maxSecurityFile:
		return nil, configErrorf("%s: %s has more than %d MiB", flag, name, maxSecurityFile>>20)
	}
	return data, nil
}

// pathless returns the operating system's own error, without the path.
func pathless(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// password returns the present password of the user.
func (s *EtcdSecurity) password() (string, error) {
	if s.PasswordFile == "" {
		return s.Password, nil
	}
	data, err := readSetting("--etcd-password-file", s.PasswordFile)
	if err != nil {
		return "", err
	}
	password := string(bytes.TrimRight(data, "\r\n"))
	if password == "" {
		return "", configErrorf("--etcd-password-file: %s is empty", s.PasswordFile)
	}
	return password, nil
}

// loadTLS returns the configuration that the files make, as they are now.
func (s *EtcdSecurity) loadTLS() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		data, err := readSetting("--etcd-ca", s.CAFile)
		if err != nil {
			return nil, err
		}
		if config.RootCAs, err = authorities(data); err != nil {
			return nil, configErrorf("--etcd-ca: %s cannot be used: %v", s.CAFile, err)
		}
	}
	if s.CertFile == "" {
		return config, nil
	}
	certificate, err := readSetting("--etcd-cert", s.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := readSetting("--etcd-key", s.KeyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, configErrorf("--etcd-cert %s and --etcd-key %s cannot be used: %v", s.CertFile, s.KeyFile, err)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, configErrorf("--etcd-cert: the certificate in %s has expired: it was valid until %s",
			s.CertFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// authorities parses certificates in PEM: at least one, and nothing else.
func authorities(data []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a %s, and must have certificates only", block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(certificate)
		found = true
	}
	if !found {
		return nil, errors.New("it has no certificate in PEM")
	}
	return pool, nil
}

// security is what all connections to the members share. It is safe for concurrent use.
type security struct {
	EtcdSecurity
	log *slog.Logger

	mu sync.Mutex
	// usable is the configuration that was loaded last. Guarded by mu.
	usable *tls.Config
}

// newSecurity reads all files once.
func newSecurity(s EtcdSecurity, endpoints []string, log *slog.Logger) (*security, error) {
	c := &security{EtcdSecurity: s, log: log}
	for _, endpoint := range endpoints {
		if !secure(endpoint) {
			continue
		}
		var err error
		if c.usable, err = s.loadTLS(); err != nil {
			return nil, err
		}
		break
	}
	if s.Username == "" {
		return c, nil
	}
	for _, endpoint := range endpoints {
		if !secure(endpoint) {
			log.Warn("the password of --etcd-username is sent to etcd unencrypted, since an endpoint does not begin with https://",
				slog.String("endpoint", endpoint))
			break
		}
	}
	_, err := s.password()
	return c, err
}

// secure reports whether an endpoint is reached by TLS.
func secure(endpoint string) bool { return strings.HasPrefix(endpoint, "https://") }

// tls returns the configuration for a new connection. Files that cannot be used any more change
// nothing.
func (s *security) tls() *tls.Config {
	config, err := s.loadTLS()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.log.Warn("the TLS files for etcd cannot be used any more; using the earlier ones", slog.Any("error", err))
		return s.usable
	}
	s.usable = config
	return config
}

// handshakes are the TLS credentials of the connections to one member. They keep why the last
// connection failed, which gRPC does not return while a request waits for a connection.
type handshakes struct {
	credentials.TransportCredentials // only describes itself
	security                         *security
	// failure is why the member cannot be talked to; nil while it can, or is not reached.
	failure atomic.Pointer[error]
	// completed is whether this side has completed a handshake.
	completed atomic.Bool
}

func newHandshakes(s *security) *handshakes {
	return &handshakes{TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), security: s}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (h *handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(h.security.tls()).ClientHandshake(ctx, or(h.security.ServerName, authority), raw)
	if err != nil {
		h.note(err)
		return nil, nil, err
	}
	h.completed.Store(true)
	return &handshaken{Conn: conn, handshakes: h}, info, nil
}

// Clone implements [credentials.TransportCredentials].
func (h *handshakes) Clone() credentials.TransportCredentials { return h }

// note keeps an error of TLS. That of a network says nothing new.
func (h *handshakes) note(err error) {
	if _, network := errors.AsType[*net.OpError](err); network && !alert(err) || errors.Is(err, io.EOF) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	h.failure.Store(&err)
}

// alert reports whether the other side has ended a connection and said why.
func alert(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "remote error"
}

// handshaken is a connection of which the member may yet say that it does not accept the
// certificate of this process: with TLS 1.3 that follows the handshake.
type handshaken struct {
	net.Conn
	handshakes *handshakes
	read       bool // belongs to the goroutine that reads
}

// Read implements [net.Conn].
func (c *handshaken) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	switch {
	case n > 0 && !c.read:
		c.read = true
		c.handshakes.failure.Store(nil)
	case err != nil && alert(err):
		c.handshakes.note(err)
	}
	return n, err
}

// explainTLS returns a sentence for an error of a handshake.
func (s *EtcdSecurity) explainTLS(err error) error {
	advice := ""
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, unknownAuthority := errors.AsType[x509.UnknownAuthorityError](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case unknownAuthority && s.CAFile != "":
		advice = "; --etcd-ca " + s.CAFile + " does not have its certificate authority"
	case unknownAuthority:
		advice = "; name its certificate authority with --etcd-ca"
	case isInvalid && invalid.Reason == x509.Expired:
		advice = "; replace the certificate of etcd"
	case otherName:
		advice = "; --etcd-server-name can give a name that it has"
	case notTLS:
		return errors.New("it does not speak TLS; with http:// it may be reachable in --etcd-endpoints")
	case alert(err) && s.CertFile != "":
		advice = "; it does not accept the certificate of --etcd-cert " + s.CertFile
	case alert(err):
		advice = "; it may ask for a client certificate, which --etcd-cert and --etcd-key name"
	}
	return fmt.Errorf("%w%s", err, advice)
}
