package journal

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// cluster is an external etcd, in a process of its own, with the limits that etcd
// has by default. It can be killed and started again on its address.
type cluster struct {
	t       testing.TB
	dir     string
	address string
	kill    func()
}

// etcdEnv makes the test binary an etcd, with its directory and address.
const etcdEnv = "JOURNAL_TEST_ETCD"

// serveEtcd runs until its standard input ends, as it does with its parent.
func serveEtcd(arguments string) {
	dir, address, _ := strings.Cut(arguments, " ")
	e, err := startTestEtcd(dir, address, slog.New(slog.DiscardHandler), false)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	e.Close()
	os.Exit(0)
}

func startTestEtcd(dir, address string, log *slog.Logger, noFsync bool) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name = "external"
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log))
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: address}}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = noFsync
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	<-e.Server.ReadyNotify()
	return e, nil
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return address
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), address: freeAddress(t)}
	c.start()
	t.Cleanup(func() { c.kill() })
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), etcdEnv+"="+c.dir+" "+c.address)
	child.Stderr = c.t.Output()
	in, err := child.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.kill = sync.OnceFunc(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
		_ = in.Close()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		c.kill()
		c.t.Fatalf("etcd does not start: %q, %v", line, err)
	}
}

func (c *cluster) config(address string) Config {
	return Config{
		Endpoints: []string{"http://" + c.address},
		Logger:    testLogger(c.t).With("process", address),
		Address:   address,
		OwnerTTL:  2 * time.Second,
	}
}
