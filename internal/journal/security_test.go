package journal

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/instanced/instanced/internal/addrtest"
	"github.com/instanced/instanced/internal/instance"
)

// testAuthority issues certificates.
type testAuthority struct {
	t           testing.TB
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	// file has the certificate.
	file string
}

func newTestAuthority(t testing.TB, file string) *testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &testAuthority{t: t, key: key, file: file}
	a.certificate = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(file)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.certificate, a.certificate, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes a certificate, for a server on loopback or a client, and its key to files.
func (a *testAuthority) issue(cert, key, name string, notAfter time.Time) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, DNSNames: []string{name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, cert, "CERTIFICATE", der)
	writePEM(a.t, key, "PRIVATE KEY", keyDER)
}

func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	writeText(t, name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

func writeText(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const (
	serverName   = "etcd.example.com"
	testPassword = "s3cret words"
)

// secureEtcd is an etcd with TLS, client certificates and users: root, writer, who may do what
// the documentation says is needed, and reader.
type secureEtcd struct {
	t         testing.TB
	authority *testAuthority
	dir       string
	address   string
	kill      func()
	// tokens is the kind of tokens.
	tokens string
}

func startSecureEtcd(t testing.TB, tokens string) *secureEtcd {
	t.Helper()
	e := &secureEtcd{t: t, dir: t.TempDir(), address: addrtest.Free(t), tokens: tokens}
	e.authority = newTestAuthority(t, e.path("ca.crt"))
	if tokens == "jwt" {
		e.authority.issue(e.path("jwt.crt"), e.path("jwt.key"), "jwt", time.Now().Add(time.Hour))
		e.tokens += ",priv-key=" + e.path("jwt.key") + ",sign-method=ES256,ttl=1s"
	}
	e.authority.issue(e.path("server.crt"), e.path("server.key"), serverName, time.Now().Add(time.Hour))
	e.authority.issue(e.path("client.crt"), e.path("client.key"), "instanced", time.Now().Add(time.Hour))
	writeText(t, e.path("password"), testPassword+"\n")
	e.start()
	t.Cleanup(func() { e.kill() })
	ctx := t.Context()
	check := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := e.client("")
	check(c.RoleAdd(ctx, "instanced"))
	check(c.RoleGrantPermission(ctx, "instanced", "/instanced/", clientv3.GetPrefixRangeEnd("/instanced/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	check(c.RoleAdd(ctx, "read"))
	check(c.RoleGrantPermission(ctx, "read", "/instanced/", clientv3.GetPrefixRangeEnd("/instanced/"), clientv3.PermissionType(clientv3.PermRead)))
	for user, role := range map[string]string{"root": "root", "writer": "instanced", "reader": "read"} {
		check(c.UserAdd(ctx, user, testPassword))
		check(c.UserGrantRole(ctx, user, role))
	}
	check(c.UserAddWithOptions(ctx, "machine", "", &clientv3.UserAddOptions{NoPassword: true}))
	check(c.UserGrantRole(ctx, "machine", "instanced"))
	check(c.AuthEnable(ctx))
	return e
}

func (e *secureEtcd) path(name string) string { return filepath.Join(e.dir, name) }

func (e *secureEtcd) start() {
	e.t.Helper()
	process, kill, ready := runEtcd(e.t, "secure "+e.dir+" "+e.address+","+e.tokens)
	e.kill = kill
	if !ready() {
		e.kill()
		e.t.Fatalf("etcd does not start: %v", process)
	}
}

// startTestSecureEtcd starts an etcd on an address, with certificates of a directory and tokens of
// a kind, which follows the address after a comma.
func startTestSecureEtcd(dir, address string) (*embed.Etcd, error) {
	address, tokens, _ := strings.Cut(address, ",")
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: address}}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = filepath.Join(dir, "ca.crt"), true
	cfg.BcryptCost = 4 // the minimum
	cfg.AuthToken, cfg.AuthTokenTTL = tokens, 1
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	<-e.Server.ReadyNotify()
	return e, nil
}

// client returns a client of a user, or of none.
func (e *secureEtcd) client(user string) *clientv3.Client {
	e.t.Helper()
	s := e.config("").Security
	config, err := s.loadTLS()
	if err != nil {
		e.t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + e.address}, Username: user, Password: testPassword, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithAuthority(serverName)},
	})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = client.Close() }) // says that its context was cancelled
	return client
}

// config is that of a journal which is allowed all that it needs.
func (e *secureEtcd) config(name string) Config {
	return Config{
		Endpoints: []string{"https://" + e.address},
		Logger:    testLogger(e.t).With("process", name),
		Address:   name,
		OwnerTTL:  4 * time.Second,
		Security: EtcdSecurity{
			CAFile: e.authority.file, CertFile: e.path("client.crt"), KeyFile: e.path("client.key"), ServerName: serverName,
			Username: "writer", PasswordFile: e.path("password"),
		},
	}
}

// TestAJournalIsKeptInASecuredEtcd with the rights that the documentation asks for, through all
// that can make etcd reject a token or close a connection: none of it costs the owner its lease,
// or a write.
func TestAJournalIsKeptInASecuredEtcd(t *testing.T) {
	t.Parallel()
	// The tokens of etcd's default are unknown after a restart; the others expire though they are used.
	for _, tokens := range []string{"simple", "jwt"} {
		t.Run(tokens, func(t *testing.T) {
			t.Parallel()
			keepInSecuredEtcd(t, startSecureEtcd(t, tokens))
		})
	}
}

func keepInSecuredEtcd(t *testing.T, e *secureEtcd) {
	log := &syncBuffer{}
	config := e.config("owner")
	config.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	owner, term := own(t, config)
	follower := openJournal(t, e.config("follower"))
	r := follower.Read(follower.Head())
	write := func(when string) {
		t.Helper()
		p := set(t, term, id(1), instance.StateStopped)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if b, err := r.Next(ctx); err != nil || b.Position != p {
			t.Fatalf("%s: the follower reads %v, %v, want %v", when, b, err, p)
		}
	}
	write("at first")

	root := e.client("root")
	// Etcd forgets all tokens when authentication is turned off.
	if _, err := root.AuthDisable(t.Context()); err != nil {
		t.Fatal(err)
	}
	write("without authentication")
	if _, err := root.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	write("with invalid tokens")

	// A new password, which the file has a moment later.
	if _, err := root.UserChangePassword(t.Context(), "writer", "other"); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		_, err := owner.store.members.conn().Get(t.Context(), owner.store.keys.meta)
		return denied(err)
	})
	writeText(t, e.path("password"), "other")
	write("with a new password")

	// New certificates, and a restart, after which tokens are unknown and connections are new.
	e.kill()
	e.authority.issue(e.path("server.crt"), e.path("server.key"), serverName, time.Now().Add(time.Hour))
	e.authority.issue(e.path("client.crt"), e.path("client.key"), "instanced-2", time.Now().Add(time.Hour))
	e.start()
	write("after a restart")

	for begin := time.Now(); time.Since(begin) < 1500*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if left := term.Remaining(); left < instance.MinTermLeft {
			t.Fatalf("%v remains of the term", left)
		}
	}
	if err := term.Err(); err != nil {
		t.Errorf("the term has ended: %v", err)
	}
	for _, password := range []string{testPassword, "other"} {
		if strings.Contains(log.String(), password) {
			t.Errorf("the log has a password")
		}
	}
}

// TestWhatEtcdDoesNotPermitIsSaid after it has permitted everything.
func TestWhatEtcdDoesNotPermitIsSaid(t *testing.T) {
	t.Parallel()
	e := startSecureEtcd(t, "simple")
	config := e.config("owner")
	config.Security.PasswordFile, config.Security.Password = "", testPassword
	log := &syncBuffer{}
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	j, term := own(t, config)
	set(t, term, id(1), instance.StateStopped)

	// Only root may compact, which is said once.
	for range 3 {
		if err := term.compact(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "the user of etcd may not compact it"); n != 1 {
		t.Errorf("it is said %d times that compaction is denied, in:\n%s", n, log)
	}
	if n := testutil.ToFloat64(j.metrics.compactions); n != 0 {
		t.Errorf("%v compactions are counted", n)
	}

	root := e.client("root")
	if _, err := root.UserRevokeRole(t.Context(), "writer", "instanced"); err != nil {
		t.Fatal(err)
	}
	updated := make(chan error)
	go func() {
		_, err := term.Update(t.Context(), func(tx *Tx) error { tx.Append(change(id(1), instance.StatePending)); return nil })
		updated <- err
	}()
	await(t, func() bool {
		err := term.Writable()
		return err != nil && strings.Contains(err.Error(), "etcd does not permit it")
	})
	if _, err := root.UserGrantRole(t.Context(), "writer", "instanced"); err != nil {
		t.Fatal(err)
	}
	if err := <-updated; err != nil {
		t.Errorf("once it is permitted again: %v", err)
	}
}

// TestACertificateNamesTheUser if no other is set.
func TestACertificateNamesTheUser(t *testing.T) {
	t.Parallel()
	e := startSecureEtcd(t, "simple")
	e.authority.issue(e.path("machine.crt"), e.path("machine.key"), "machine", time.Now().Add(time.Hour))
	config := e.config("owner")
	config.Security = EtcdSecurity{CAFile: e.authority.file, CertFile: e.path("machine.crt"), KeyFile: e.path("machine.key"), ServerName: serverName}
	j, term := own(t, config)
	p := set(t, term, id(1), instance.StateStopped)
	if batches := readAll(t, j, j.Oldest(), p); len(batches) == 0 {
		t.Error("nothing is read")
	}

	// Finalize opens the same journal.
	config.Logger = testLogger(t)
	if was, is, err := Finalize(t.Context(), config); err != nil || was != is {
		t.Errorf("finalize: %d, %d, %v", was, is, err)
	}
}

// TestFilesThatCannotBeUsedAnyMoreChangeNothing: a new connection uses the earlier ones.
func TestFilesThatCannotBeUsedAnyMoreChangeNothing(t *testing.T) {
	t.Parallel()
	e := startSecureEtcd(t, "simple")
	config := e.config("owner")
	log := &syncBuffer{}
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	_, term := own(t, config)
	writeText(t, e.path("client.key"), "broken")
	e.kill()
	e.start()
	set(t, term, id(1), instance.StateStopped)
	if !strings.Contains(log.String(), "the TLS files for etcd cannot be used any more; using the earlier ones") {
		t.Errorf("the log does not say so:\n%s", log)
	}
}

// TestRootCompactsEtcd for the same journal.
func TestRootCompactsEtcd(t *testing.T) {
	t.Parallel()
	e := startSecureEtcd(t, "simple")
	config := e.config("owner")
	config.Security.Username = "root"
	j, term := own(t, config)
	for range 2 {
		set(t, term, id(1), instance.StateStopped)
		if err := term.compact(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := testutil.ToFloat64(j.metrics.compactions); n != 1 {
		t.Errorf("%v compactions are counted, want 1", n)
	}
}

// TestOpenSaysWhyASecuredEtcdCannotBeUsed by the name of the setting, and soon.
func TestOpenSaysWhyASecuredEtcdCannotBeUsed(t *testing.T) {
	t.Parallel()
	e := startSecureEtcd(t, "simple")
	other := newTestAuthority(t, e.path("other.crt"))
	other.issue(e.path("stranger.crt"), e.path("stranger.key"), "instanced", time.Now().Add(time.Hour))
	e.authority.issue(e.path("expired.crt"), e.path("expired.key"), serverName, time.Now().Add(-time.Minute))
	writeText(t, e.path("wrong"), "wrong\n")
	writeText(t, e.path("empty"), "\n")
	serve := func(listen func(address string) (net.Listener, error)) string {
		address := addrtest.Free(t)
		lis, err := listen(address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := lis.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("hello, this is no TLS")) // or fails to shake hands
				_ = conn.Close()
			}
		}()
		t.Cleanup(func() { _ = lis.Close() })
		return "https://" + address
	}
	plain := serve(func(address string) (net.Listener, error) { return net.Listen("tcp", address) })
	expired := serve(func(address string) (net.Listener, error) {
		pair, err := tls.LoadX509KeyPair(e.path("expired.crt"), e.path("expired.key"))
		if err != nil {
			return nil, err
		}
		return tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	})
	for name, test := range map[string]struct {
		change func(c *Config)
		want   string
	}{
		"another authority": {func(c *Config) { c.Security.CAFile = other.file }, "certificate signed by unknown authority; --etcd-ca " + other.file + " does not have its certificate authority"},
		"no authority":      {func(c *Config) { c.Security.CAFile = "" }, "certificate signed by unknown authority; name its certificate authority with --etcd-ca"},
		"another name":      {func(c *Config) { c.Security.ServerName = "db.example.com" }, "certificate is valid for etcd.example.com, not db.example.com; --etcd-server-name can give a name that it has"},
		"expired etcd":      {func(c *Config) { c.Endpoints = []string{expired} }, "certificate has expired or is not yet valid"},
		"no TLS":            {func(c *Config) { c.Endpoints = []string{plain} }, "it does not speak TLS; with http:// it may be reachable in --etcd-endpoints"},
		"no certificate":    {func(c *Config) { c.Security.CertFile, c.Security.KeyFile = "", "" }, "certificate required; it may ask for a client certificate, which --etcd-cert and --etcd-key name"},
		"a strange one": {func(c *Config) {
			c.Security.CertFile, c.Security.KeyFile = e.path("stranger.crt"), e.path("stranger.key")
		}, "it does not accept the certificate of --etcd-cert " + e.path("stranger.crt")},
		"an expired one": {func(c *Config) {
			c.Security.CertFile, c.Security.KeyFile = e.path("expired.crt"), e.path("expired.key")
		}, "--etcd-cert: the certificate in " + e.path("expired.crt") + " has expired: it was valid until "},
		"another key":         {func(c *Config) { c.Security.KeyFile = e.path("stranger.key") }, "--etcd-cert " + e.path("client.crt") + " and --etcd-key " + e.path("stranger.key") + " cannot be used: tls: private key does not match public key"},
		"a missing authority": {func(c *Config) { c.Security.CAFile = e.path("missing") }, "--etcd-ca: cannot read " + e.path("missing") + ": no such file or directory"},
		"a directory":         {func(c *Config) { c.Security.CertFile = e.dir }, "--etcd-cert: cannot read " + e.dir + ": is a directory"},
		"a missing key":       {func(c *Config) { c.Security.KeyFile = e.path("missing") }, "--etcd-key: cannot read " + e.path("missing")},
		"a key as authority":  {func(c *Config) { c.Security.CAFile = e.path("client.key") }, "--etcd-ca: " + e.path("client.key") + " cannot be used: it has a PRIVATE KEY, and must have certificates only"},
		"a text as authority": {func(c *Config) { c.Security.CAFile = e.path("password") }, "it has no certificate in PEM"},
		"a wrong password":    {func(c *Config) { c.Security.PasswordFile = e.path("wrong") }, "it does not accept the user of --etcd-username with the password in --etcd-password-file " + e.path("wrong")},
		"an unknown user": {func(c *Config) {
			c.Security.Username, c.Security.PasswordFile, c.Security.Password = "stranger", "", "x"
		}, "it does not accept the user of --etcd-username with the password in INSTANCED_ETCD_PASSWORD"},
		"an empty password":    {func(c *Config) { c.Security.PasswordFile = e.path("empty") }, "--etcd-password-file: " + e.path("empty") + " is empty"},
		"a missing password":   {func(c *Config) { c.Security.PasswordFile = e.path("missing") }, "--etcd-password-file: cannot read " + e.path("missing")},
		"no user":              {func(c *Config) { c.Security.Username = "" }, "it does not let the user that the certificate of --etcd-cert names read and write all keys below --etcd-prefix /instanced/"},
		"a user who may read":  {func(c *Config) { c.Security.Username = "reader" }, "the user of --etcd-username, reader, may not read and write all keys below --etcd-prefix /instanced/; grant it a role"},
		"a user of other keys": {func(c *Config) { c.Prefix = "/other" }, "the user of --etcd-username, writer, may not read and write all keys below --etcd-prefix /other/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := e.config("")
			config.Logger = testLogger(t)
			test.change(&config)
			begun := time.Now()
			j, err := Open(t.Context(), config)
			if err == nil {
				closeJournal(t, j)
				t.Fatal("it opens")
			}
			if text := err.Error(); !strings.Contains(text, test.want) || strings.Contains(text, "\n") {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
			if took := time.Since(begun); took > openTimeout/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
}
