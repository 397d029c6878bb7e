package soak_test

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/instanced/instanced/internal/addrtest"
)

// etcdEnv makes the test binary an etcd, with its directory and address.
const etcdEnv = "INSTANCED_SOAK_ETCD"

// serveEtcd runs until its standard input ends, as it does with its parent.
func serveEtcd(arguments string) {
	dir, address, _ := strings.Cut(arguments, " ")
	config := embed.NewConfig()
	config.Name = "external"
	config.Dir = dir
	config.LogLevel = "panic"
	config.ListenPeerUrls = nil
	config.ListenClientUrls = []url.URL{{Scheme: "http", Host: address}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.TickMs, config.ElectionMs = 10, 100
	e, err := embed.StartEtcd(config)
	if err != nil {
		panic(err)
	}
	<-e.Server.ReadyNotify()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	e.Close()
	os.Exit(0)
}

// etcd is an etcd in a process of its own, with the limits that it has by default. It
// can be killed and started again.
type etcd struct {
	t       testing.TB
	dir     string
	address string
	kill    func()
}

func newEtcd(t testing.TB) *etcd {
	t.Helper()
	e := &etcd{t: t, dir: t.TempDir(), address: addrtest.Free(t)}
	e.start()
	t.Cleanup(func() { e.kill() })
	return e
}

func (e *etcd) start() {
	e.t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(slices.Clip(environment), etcdEnv+"="+e.dir+" "+e.address)
	child.Stderr = e.t.Output()
	in, err := child.StdinPipe()
	if err != nil {
		e.t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		e.t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.kill = sync.OnceFunc(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
		_ = in.Close()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		e.kill()
		e.t.Fatalf("etcd does not start: %q, %v", line, err)
	}
}
