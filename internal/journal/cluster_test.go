package journal

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/instanced/instanced/internal/addrtest"
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
	address, peers, several := strings.Cut(address, " ")
	var e *embed.Etcd
	var err error
	if dir == "secure" {
		e, err = startTestSecureEtcd(address, peers)
	} else if several {
		e, err = startTestMember(dir, address, strings.Split(peers, ","))
	} else {
		e, err = startTestEtcd(dir, address, slog.New(slog.DiscardHandler), false, 0)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	e.Close()
	os.Exit(0)
}

func startTestEtcd(dir, address string, log *slog.Logger, noFsync bool, quota int64) (*embed.Etcd, error) {
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
	cfg.QuotaBackendBytes = quota // 0 is etcd's default
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	<-e.Server.ReadyNotify()
	return e, nil
}

// startTestMember starts the member of a cluster whose peer address comes first, with the
// timing that etcd has by default.
func startTestMember(dir, address string, peers []string) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name = peers[0]
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(slog.New(slog.DiscardHandler)))
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: peers[0]}}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: address}}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.InitialCluster = ""
	for _, peer := range peers {
		cfg.InitialCluster += fmt.Sprintf(",%s=http://%s", peer, peer)
	}
	cfg.InitialCluster = cfg.InitialCluster[1:]
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	<-e.Server.ReadyNotify()
	return e, nil
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), address: addrtest.Free(t)}
	c.start()
	t.Cleanup(func() { c.kill() })
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	child, kill, ready := runEtcd(c.t, c.dir+" "+c.address)
	c.kill = kill
	if !ready() {
		c.kill()
		c.t.Fatalf("etcd does not start: %v", child)
	}
}

// runEtcd makes the test binary an etcd. It is ready when ready returns true.
func runEtcd(t testing.TB, arguments string) (child *exec.Cmd, kill func(), ready func() bool) {
	t.Helper()
	child = exec.Command(os.Args[0])
	child.Env = append(os.Environ(), etcdEnv+"="+arguments)
	child.Stderr = t.Output()
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
		_ = in.Close()
	})
	return child, kill, func() bool {
		line, _ := bufio.NewReader(out).ReadString('\n') // else it has ended
		return line == "ready\n"
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
