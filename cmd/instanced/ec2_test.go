package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestACredentialsFileThatOthersCanReadIsWarnedOf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys.json")
	content := `{"credentials": [{"access_key_id": "AKIA", "secret_access_key": "topsecret", "principal": "alice"}]}`
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o400: false, 0o644: true, 0o604: true, 0o602: true} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		credentials, err := readCredentials(name, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || len(credentials) != 1 {
			t.Fatalf("%v: %v", mode, err)
		}
		said := log.String()
		if got := strings.Contains(said, "level=WARN") && strings.Contains(said, name) && strings.Contains(said, "chmod o-rw"); got != warned || strings.Contains(said, "topsecret") {
			t.Errorf("%v: warned %v: %s", mode, got, said)
		}
	}
}

// TestTheEC2PortIsOpenOnceCallsAreAnswered holds the start up by an etcd that never
// answers.
func TestTheEC2PortIsOpenOnceCallsAreAnswered(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	ports := make([]string, 2)
	for n := range ports {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[n] = lis.Addr().String()
		_ = lis.Close() // free for the service
	}
	cmd := exec.Command("instanced", "serve", "--listen", ports[0], "--ec2-listen", ports[1], "--etcd-endpoints", "http://"+silent.Addr().String())
	cmd.Env = awsEnvironment()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	accepts := func(address string) bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	eventually(t, "it listens for gRPC", func() bool { return accepts(ports[0]) })
	eventually(t, "the EC2 port accepts no connection", func() bool { return !accepts(ports[1]) })
	if !accepts(ports[0]) {
		t.Fatal("it has ended")
	}

	_, endpoint := withDoor(t)
	if !accepts(endpoint) {
		t.Error("a service that says where it serves does not accept calls at the EC2 port")
	}
}
