package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/instance"
)

// wantSentence fails the test unless opening fails and says all of that.
func wantSentence(t *testing.T, j *Journal, err error, parts ...string) {
	t.Helper()
	if err == nil {
		closeJournal(t, j)
		t.Fatal("it was opened")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

func TestADirectoryThatCannotBeWrittenToIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// Nothing is read-only for root: let this thread be somebody else.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const nobody = 65534
		_ = unix.Setfsuid(nobody)
		defer func() { _ = unix.Setfsuid(0) }()
	}
	j, err := Open(t.Context(), Config{DataDir: dir})
	wantSentence(t, j, err, dir, "cannot be written to", "permission denied")
	j, err = Open(t.Context(), Config{DataDir: filepath.Join(dir, "below")})
	wantSentence(t, j, err, dir, "cannot be created", "permission denied")
}

func TestADirectoryInUseIsRefused(t *testing.T) {
	config := testConfig(t)
	openJournal(t, config)
	j, err := Open(t.Context(), config)
	wantSentence(t, j, err, config.DataDir, "in use by process "+fmt.Sprint(os.Getpid()))
}

func TestADirectoryIsFreeAgainWhenTheJournalIsClosed(t *testing.T) {
	config := testConfig(t)
	for range 3 {
		j, err := Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		closeJournal(t, j)
		closeJournal(t, j) // does nothing
	}
}

func TestADirectoryOfAnotherFormatIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, format string
		want         []string
	}{
		{"a newer version", "instanced journal 2\n", []string{"format 2", "newer version", "up to 1"}},
		{"something else", "hello\n", []string{"not one of this program", "hello"}},
		{"nothing", "", []string{"not one of this program"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "format"), []byte(c.format), 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := Open(t.Context(), Config{DataDir: dir})
			wantSentence(t, j, err, append(c.want, dir)...)
			if _, err := os.Stat(filepath.Join(dir, "etcd")); err == nil {
				t.Error("it was touched all the same")
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etcd"), 0o700); err != nil {
			t.Fatal(err)
		}
		j, err := Open(t.Context(), Config{DataDir: dir})
		wantSentence(t, j, err, dir, "damaged")
	})
}

func TestALogOfANewerFormatIsRefused(t *testing.T) {
	config := testConfig(t)
	j := openJournal(t, config)
	id := newLogID()
	if _, err := j.store.client.Put(t.Context(), "/newer/meta", "\x08\x02\x12\x10"+string(id[:])); err != nil {
		t.Fatal(err)
	}
	j.config.Prefix = "/newer"
	j.store.keys = newKeys("/newer")
	wantSentence(t, nil, j.load(t.Context()), "/newer", "format 2", "newer version")
}

func TestAnOpenWithoutAPlaceIsRefused(t *testing.T) {
	j, err := Open(t.Context(), Config{})
	wantSentence(t, j, err, "data directory", "endpoints")
}

func TestADiskThatIsFullIsRefused(t *testing.T) {
	config := testConfig(t)
	config.MinFreeDisk = 0
	j, err := openWith(t.Context(), config, func(string) (int64, error) { return 100 << 20, nil })
	wantSentence(t, j, err, config.DataDir, "100 MiB of free disk space", "160 MiB")
}

func TestADiskThatIsNearlyFullTakesNoWrites(t *testing.T) {
	config := testConfig(t)
	config.MinFreeDisk = 0
	j, err := openWith(t.Context(), config, func(string) (int64, error) { return 511 << 20, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	term := campaign(t, j)
	err = term.Writable()
	e := wantError(t, err, instance.KindExhausted, ReasonFull)
	if !strings.Contains(e.Message, "511 MiB") || !strings.Contains(e.Message, "512 MiB") {
		t.Errorf("the message does not say how much: %s", e.Message)
	}
	j.Snapshot() // reads go on
}

func TestFreeSpaceIsAskedForOnceASecond(t *testing.T) {
	asked := 0
	d := &disk{path: "/", least: 10, statfs: func(string) (int64, error) { asked++; return 100, nil }}
	for range 1000 {
		if err := d.check(); err != nil {
			t.Fatal(err)
		}
	}
	if asked > 10 {
		t.Errorf("asked %d times", asked)
	}
	if free, err := freeSpace(t.TempDir()); err != nil || free <= 0 {
		t.Errorf("%d bytes are free: %v", free, err)
	}
}
