package main

import (
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/lifecycle"
)

func TestAFollowerSaysWhereCommandsGo(t *testing.T) {
	g := &greeting{
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
	if strings.Contains(text, " start ") || strings.Contains(text, "begun with") {
		t.Error("it says what holds for an owner only")
	}
	if t.Failed() {
		t.Log(text)
	}
}
