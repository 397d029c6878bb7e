package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/lifecycle"
)

func TestAFollowerSaysWhereCommandsGo(t *testing.T) {
	g := &banner{
		cfg:     serveConfig{backend: "simulator", etcdEndpoints: []string{"http://127.0.0.1:2379"}, etcdPrefix: "/instanced"},
		address: "127.0.0.1:6000",
		info:    lifecycle.Info{OwnerAddress: "127.0.0.1:50051"},
	}
	var out strings.Builder
	g.print(&out)
	text := out.String()
	for _, want := range []string{
		"follower  commands go to 127.0.0.1:50051\n",
		"etcd at http://127.0.0.1:2379, below /instanced\n",
		" describe --server 127.0.0.1:6000\n",
		" watch --server 127.0.0.1:6000\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if strings.Contains(text, " start ") || strings.Contains(text, "built-in fleet") {
		t.Error("it says what holds for an owner only")
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestTheBannerSaysFromWhereTheEC2EndpointCanBeReached(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:8580": "  ec2       http://127.0.0.1:8580; in plaintext on loopback; signatures are verified with keys.json\n",
		"[::1]:8580":     "  ec2       http://[::1]:8580; in plaintext on loopback; ",
		"192.0.2.1:8580": "  ec2       http://192.0.2.1:8580; in plaintext on the network; ",
		"0.0.0.0:8580":   "  ec2       http://127.0.0.1:8580; in plaintext on all interfaces (0.0.0.0:8580); ",
		"[::]:8580":      "  ec2       http://127.0.0.1:8580; in plaintext on all interfaces ([::]:8580); ",
	} {
		g := &banner{
			cfg:       serveConfig{backend: "simulator", ec2Credentials: "keys.json"},
			ec2Listen: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)),
		}
		var out strings.Builder
		if g.print(&out); !strings.Contains(out.String(), want) {
			t.Errorf("on %s it says\n%s\nwant\n%s", address, out.String(), want)
		}
	}
}
