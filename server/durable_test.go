package server_test

import (
	"bufio"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// victimDir is where a process that is to be killed has its data.
const victimDir = "INSTANCED_TEST_VICTIM_DIR"

func TestDurable(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		beKilled(t, dir)
		return
	}
	dir := t.TempDir()
	victim, conn := startVictim(t, dir)
	client := instancedv1.NewInstanceServiceClient(conn)
	watching := watchOn(t, conn, &instancedv1.WatchInstancesRequest{})
	until(t, watching, conformance.SnapshotSeen)
	last := ""
	for n := range 12 {
		start, err := client.StartInstances(as(patient(t), "alice", id(n)), &instancedv1.StartInstancesRequest{InstanceIds: []string{id(n)}})
		if err != nil {
			t.Fatal(err)
		}
		last = start.GetEndCursor()
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	seen, err := watching.End(patient(t))
	if err != nil {
		t.Fatal(err)
	}

	log, err := conformance.NewLog(seen)
	if err != nil {
		t.Fatal(err)
	}
	srv := servertest.New(t, servertest.Options{DataDir: dir})
	after := history(t, srv, ids(12), log.Begin())
	if err := conformance.Durable(log.Matching(nil, 0, log.Head()), after); err != nil {
		t.Error(err)
	}
	for n := range 12 {
		if !slices.ContainsFunc(after, func(e *instancedv1.Event) bool {
			return e.GetCause().GetRequestId() == id(n) && e.GetInstance().GetState().GetName() == pending
		}) {
			t.Errorf("the start of %s was acknowledged and is lost", id(n))
		}
	}
	// The last cursor is as good as it was.
	watch(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: last})
}

// startVictim runs this test in another process, which serves until it is killed.
func startVictim(t *testing.T, dir string) (*exec.Cmd, *grpc.ClientConn) {
	t.Helper()
	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDurable$", "-test.v")
	victim.Env = append(os.Environ(), victimDir+"="+dir)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = victim.Process.Kill() })
	const announcement = "serving on "
	for lines := bufio.NewScanner(out); lines.Scan(); {
		address, ok := strings.CutPrefix(lines.Text(), announcement)
		if !ok {
			continue
		}
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return victim, conn
	}
	t.Fatal("the other process does not serve")
	return nil, nil
}

// beKilled serves until the process is killed.
func beKilled(t *testing.T, dir string) {
	srv := servertest.New(t, servertest.Options{DataDir: dir, Fleet: fleet(12)})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	_, _ = os.Stdout.WriteString("\nserving on " + lis.Addr().String() + "\n")
	<-t.Context().Done()
}

// copyDir copies the data of a server that is closed.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o700)
		case !entry.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
