package journal

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
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
		const unprivileged = 65534
		_ = unix.Setfsuid(unprivileged)
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
		{"a newer version", "instanced journal 5\n", []string{"format 5", "newer version", "up to 4"}},
		{"a newer version that says which", "instanced journal 7\nwritten by instanced v9.8.7\n", []string{"format 7", "(v9.8.7)", "up to 4"}},
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
				t.Error("the directory was changed")
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
	j.config.Prefix = "/newer"
	j.store.keys = newKeys("/newer")
	meta := &storagev1.Meta{FormatVersion: formatVersion + 1, LogId: id[:], ChecksumsFromRevision: 1}
	if _, err := j.store.client.Do(t.Context(), j.store.put(j.store.keys.meta, meta)); err != nil {
		t.Fatal(err)
	}
	wantSentence(t, nil, j.loadLocked(t.Context()), "/newer", "format 5", "newer version")
}

func TestAnOpenWithoutAPlaceIsRefused(t *testing.T) {
	j, err := Open(t.Context(), Config{})
	wantSentence(t, j, err, "data directory", "endpoints")
}

func TestADiskThatIsFullIsRefused(t *testing.T) {
	config := testConfig(t)
	config.MinFreeDisk = 0
	j, err := openWith(t.Context(), config, func(string) (int64, error) { return 100 << 20, nil })
	wantSentence(t, j, err, config.DataDir, "100 MiB of free disk space", "304 MiB")
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
	e := wantError(t, err, instance.KindExhausted, instance.ReasonJournalFull)
	if !strings.Contains(e.Message, "511 MiB") || !strings.Contains(e.Message, "512 MiB") {
		t.Errorf("the message does not say how much: %s", e.Message)
	}
	j.Snapshot() // reads go on
}

func TestFreeSpaceIsAskedForOnceASecond(t *testing.T) {
	asked := 0
	d := newDisk("/", 10, func(string) (int64, error) { asked++; return 1 << 30, nil }, testLogger(t))
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

func TestAJournalThatIsTooSmallIsRefused(t *testing.T) {
	for _, size := range []int64{-1, 1, 1<<20 - 1} {
		config := testConfig(t)
		config.MaxBytes = size
		j, err := Open(t.Context(), config)
		wantSentence(t, j, err, fmt.Sprint(size), "1 MiB")
	}
}

func TestADirectoryWithOtherFilesIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := Open(t.Context(), Config{DataDir: dir})
	wantSentence(t, j, err, dir, "thesis.tex", "not empty")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory was changed: %v, %v", entries, err)
	}
}

// A start that was cut short, and one that failed for want of rights, leave these.
func TestADirectoryThatWasBegunIsUsed(t *testing.T) {
	config := testConfig(t)
	for _, name := range []string{"lock", "format.new", probePrefix + "1"} {
		if err := os.WriteFile(filepath.Join(config.DataDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(config.DataDir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	own(t, config)
}

// written returns a journal that was written to and closed.
func written(t *testing.T) Config {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	set(t, campaign(t, j), id(1), instance.StateStopped)
	closeJournal(t, j)
	return config
}

func TestAJournalWithoutEtcdsLogIsRefused(t *testing.T) {
	config := written(t)
	if err := os.RemoveAll(filepath.Join(config.DataDir, "etcd", "member", "wal")); err != nil {
		t.Fatal(err)
	}
	j, err := Open(t.Context(), config)
	wantSentence(t, j, err, config.DataDir, "is damaged", "no files of etcd's log", "restore a copy")
}

// refuseEnv has the directory that a process of its own is to open, because what
// etcd has begun there stays for as long as the process.
const refuseEnv = "JOURNAL_TEST_REFUSE"

func openDamaged(dir string) {
	dir, more, _ := strings.Cut(dir, "?")
	if more, _ := strconv.ParseUint(more, 10, 64); more > 0 {
		limitMemory(more)
	}
	_, err := Open(context.Background(), Config{DataDir: dir, MinFreeDisk: -1})
	fmt.Printf("the error is: %v\n", err)
	os.Exit(0)
}

// limitMemory lets the process have only so many bytes of addresses more than it has.
func limitMemory(more uint64) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		panic(err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		panic(err)
	}
	all := pages*uint64(os.Getpagesize()) + more
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: all, Max: all}); err != nil {
		panic(err)
	}
}

// openedApart opens a journal in such a process, which can have only so many bytes of
// addresses more unless that is 0, and returns what it says.
func openedApart(t *testing.T, dir string, more uint64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, os.Args[0])
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s?%d", refuseEnv, dir, more))
	output, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("the process: %v", err)
	}
	return string(output)
}

func wantDamaged(t *testing.T, dir string, parts ...string) {
	t.Helper()
	output := openedApart(t, dir, 0)
	for _, part := range append(parts, "the error is: the journal in "+dir+" is damaged", "restore a copy") {
		if !strings.Contains(output, part) {
			t.Errorf("it does not say %q: %s", part, output)
		}
	}
}

func TestADamagedDatabaseIsRefused(t *testing.T) {
	config := written(t)
	database := filepath.Join(config.DataDir, "etcd", "member", "snap", "db")
	if err := os.WriteFile(database, []byte(strings.Repeat("damaged ", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, config.DataDir, "neither of its two meta pages is whole")
}

func TestADamagedLogIsRefused(t *testing.T) {
	config := written(t)
	logs, err := filepath.Glob(filepath.Join(config.DataDir, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs: %v", err)
	}
	f, err := os.OpenFile(logs[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("damaged ", 100)), 100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, config.DataDir)
}

// A lease may run out just before the end, or be noticed only then to have run out.
func TestCloseDoesNotFailWhenTheTermIsOverAlready(t *testing.T) {
	config := testConfig(t)
	var log syncBuffer
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	j, term := own(t, config)
	set(t, term, id(1), instance.StateStopped)
	if _, err := j.store.client.Delete(t.Context(), j.store.keys.owner); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	if said := "this process no longer owns the journal"; !strings.Contains(log.String(), said) {
		t.Errorf("the log does not say %q:\n%s", said, log.String())
	}
	j, _ = own(t, config)
	if got, ok := j.Get(id(1)); !ok || got.Instance.State != instance.StateStopped {
		t.Errorf("what was acknowledged is lost: %v", got)
	}
}
