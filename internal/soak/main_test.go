package soak_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// maxWait is how long to wait for any condition. Nothing takes that long unless it is
// broken.
const maxWait = time.Minute

// program is where the binary is that is tested.
var program string

func TestMain(m *testing.M) {
	if arguments := os.Getenv(etcdEnv); arguments != "" {
		serveEtcd(arguments)
	}
	flag.Parse()
	// These tests wait more than they work.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "instanced-soak-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "instanced")
	build := exec.Command("go", append([]string{"build", "-o", program}, append(buildFlags, "github.com/instanced/instanced/cmd/instanced")...)...)
	if said, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the program does not build: %v\n%s", err, said)
		return 1
	}
	code := m.Run()
	if code == 0 {
		// toxiproxy leaves this one behind when a connection is cut while data is on its way.
		left := goleak.IgnoreTopFunction("github.com/Shopify/toxiproxy/v2/toxics.(*NoopToxic).Pipe")
		if err := goleak.Find(left); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// patient is the context of a test that waits for conditions.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	t.Cleanup(cancel)
	return ctx
}

// await waits until it is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(maxWait); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not happen that %s", what)
		}
	}
}

// lastLines returns the end of a text.
func lastLines(text string, limit int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-limit):], "\n")
}
