package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxSize is the maximum size of the stripped program, in bytes.
const maxSize = 25_000_000

// TestItLinksNeitherTheServiceNorWhatThatIsMadeOf keeps the program small by what it imports.
func TestItLinksNeitherTheServiceNorWhatThatIsMadeOf(t *testing.T) {
	t.Parallel()
	list := exec.Command("go", "list", "-deps", ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 100 {
		t.Fatalf("it has only %d packages: %v", len(packages), packages)
	}
	for _, name := range packages {
		for _, unwanted := range []string{
			"go.etcd.io/", "github.com/aws/", "go.uber.org/zap", "github.com/prometheus/", "go.opentelemetry.io/",
			"github.com/instanced/instanced/server", "github.com/instanced/instanced/gen/instanced/storage/",
			"github.com/instanced/instanced/internal/journal", "github.com/instanced/instanced/internal/backend/",
			"github.com/instanced/instanced/internal/lifecycle", "github.com/instanced/instanced/internal/observer",
		} {
			if strings.HasPrefix(name, unwanted) {
				t.Errorf("it links %s", name)
			}
		}
	}
}

func TestStrippedItIsSmall(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "instancedctl")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("it does not build: %v\n%s", err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("it has %.1f MB", float64(info.Size())/1e6)
	if info.Size() > maxSize {
		t.Errorf("it has %d bytes, want at most %d", info.Size(), maxSize)
	}
}
