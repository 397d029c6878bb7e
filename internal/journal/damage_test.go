package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/instance"
)

// recall prints all that a journal knows, a line each, and why it knows no more. It goes on
// with the log to see that etcd can.
func recall(dir string) {
	out := os.Stdout
	fail := func(what string, err error) { fmt.Fprintf(out, "error: %s: %v\n", what, err) }
	defer os.Exit(0)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	j, err := Open(ctx, Config{DataDir: dir, MinFreeDisk: -1, TokenLifetime: 1000 * time.Hour})
	if err != nil {
		fail("open", err)
		return
	}
	term, err := j.Campaign(ctx)
	if err != nil {
		fail("campaign", err)
		return
	}
	for _, r := range j.Snapshot().Records {
		line, _ := json.Marshal(r) //nolint:errchkjson // none of it can fail
		fmt.Fprintf(out, "instance %s\n", line)
	}
	head := j.Head()
	for at := j.Oldest(); at.Seq < head.Seq; {
		page, err := j.History(ctx, "", nil, at, 5)
		if err != nil {
			fail("history", err)
			break
		}
		for _, e := range page.Entries {
			line, _ := json.Marshal(e) //nolint:errchkjson // none of it can fail
			fmt.Fprintf(out, "event %s\n", line)
		}
		at = page.Next
	}
	for n := range damageTokens {
		key := fmt.Sprint("token-", n)
		token, found, err := term.Token(ctx, key)
		line, _ := json.Marshal(token) //nolint:errchkjson // none of it can fail
		if err != nil {
			fail(key, err)
		} else if found {
			fmt.Fprintf(out, "token %s\n", line)
		}
	}
	_, err = term.Update(ctx, func(tx *Tx) error {
		for n := range 20 {
			tx.Append(change(id(1000+n), instance.StatePending))
		}
		return nil
	})
	if err == nil {
		err = term.checkpointer.write(ctx)
	}
	if err == nil {
		err = j.Close(ctx)
	}
	if err != nil {
		fail("update", err)
	}
}

const (
	recallEnv    = "JOURNAL_TEST_RECALL"
	damageTokens = 5
)

// recalled runs recall in a process of its own, and returns what it printed.
func recalled(t *testing.T, dir string) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, os.Args[0])
	command.Env = append(os.Environ(), recallEnv+"="+dir)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Errorf("the process: %v; it said\n%s%.2000s", err, stdout.String(), stderr.String())
	}
	return strings.Split(strings.TrimSpace(stdout.String()), "\n")
}

// eventful is a data directory with some of everything, that was closed, and a copy of it as
// it would have been left behind by a kill.
func eventful(t *testing.T) (closed, killed string) {
	t.Helper()
	closed, killed = filepath.Join(t.TempDir(), "closed"), filepath.Join(t.TempDir(), "killed")
	j, err := Open(t.Context(), Config{DataDir: closed, MinFreeDisk: -1, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	term := campaign(t, j)
	update := func(fn func(tx *Tx)) {
		if _, err := term.Update(t.Context(), func(tx *Tx) error { fn(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 30 {
		update(func(tx *Tx) {
			for n := range 1 + round%12 {
				c := change(id((round*7+n)%40), instance.States()[(round+n)%6])
				c.After.Tags["noise"] = noise(40)
				tx.Append(c)
			}
			if n := round - 20; n >= 0 && n < damageTokens {
				tx.PutToken(Token{Key: fmt.Sprint("token-", n), IDs: []instance.ID{id(n)}, Answer: &Answer{Cursor: "somewhere"}})
			}
			if round%10 == 9 {
				tx.Append(instance.Change{Before: machine(id(round), instance.StateTerminated)})
			}
		})
		if round%9 == 8 {
			if err := term.checkpointer.write(t.Context()); err != nil {
				t.Fatal(err)
			}
			trimTo(t, term, time.Time{}, 4000)
			if err := term.compact(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	copySparse(t, killed, closed)
	closeJournal(t, j)
	return closed, killed
}

// copySparse copies a directory, without the blocks of its files that are all zeros.
func copySparse(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(from, path)
		if err = errors.Join(err, relErr); err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		if strings.HasSuffix(name, ".tmp") { // etcd makes it anew
			return nil
		}
		return copyFileSparse(filepath.Join(to, name), path)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFileSparse(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	block, zeros := make([]byte, 1<<16), make([]byte, 1<<16)
	size := int64(0)
	for {
		n, err := io.ReadFull(source, block)
		if n > 0 && !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := target.WriteAt(block[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if err != nil {
			break
		}
	}
	return errors.Join(target.Truncate(size), target.Close())
}

// flip flips one bit of a file among those that are not in a block of zeros.
func flip(t *testing.T, path string, random *rand.Rand) (at int64, bit int) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const block = 512
	var used []int
	for i := 0; i < len(content); i += block {
		if slices.ContainsFunc(content[i:min(i+block, len(content))], func(b byte) bool { return b != 0 }) {
			used = append(used, i)
		}
	}
	at = int64(used[random.IntN(len(used))] + random.IntN(block))
	bit = random.IntN(8)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{content[at] ^ 1<<bit}, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return at, bit
}

// wantRecalled fails the test unless the lines are those that are wanted, or what is missing
// is said to be damaged.
func wantRecalled(t *testing.T, want, got []string) {
	t.Helper()
	var said []string
	known := map[string]bool{}
	for _, line := range want {
		known[line] = true
	}
	for _, line := range got {
		switch {
		case strings.HasPrefix(line, "error: ") && strings.Contains(line, "damaged"):
			said = append(said, line)
		case !known[line]:
			t.Errorf("it knows something else: %s", line)
		}
		delete(known, line)
	}
	if len(known) > 0 && len(said) == 0 {
		t.Errorf("it does not know, and does not say why: %v", known)
	}
	if len(said) > 0 {
		t.Log(said)
	}
}

func TestAFlippedBitOnDiskIsNoticedOrHarmless(t *testing.T) {
	t.Parallel()
	closed, killed := eventful(t)
	scratch := t.TempDir()
	flips, deadline := 12, time.Time{}
	if soak, err := time.ParseDuration(os.Getenv("INSTANCED_SOAK")); err == nil {
		flips, deadline = 1<<30, time.Now().Add(soak)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	want := map[string][]string{}
	for _, state := range []string{closed, killed} {
		dir := filepath.Join(scratch, "whole")
		copySparse(t, dir, state)
		want[state] = recalled(t, dir)
		if len(want[state]) < 60 || strings.Contains(strings.Join(want[state], "\n"), "error: ") {
			t.Fatalf("of the journal as it was: %s", strings.Join(want[state], "\n"))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < flips && (deadline.IsZero() || time.Now().Before(deadline)); n++ {
		state := []string{closed, killed}[n%2]
		dir := filepath.Join(scratch, fmt.Sprint(n))
		copySparse(t, dir, state)
		files := []string{filepath.Join(dir, "etcd", "member", "snap", "db")}
		if n%4 >= 2 {
			var err error
			if files, err = filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.wal")); err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
		}
		file := files[random.IntN(len(files))]
		at, bit := flip(t, file, random)
		t.Run(fmt.Sprintf("%s byte %d bit %d of %s", filepath.Base(state), at, bit, filepath.Base(file)), func(t *testing.T) {
			wantRecalled(t, want[state], recalled(t, dir))
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// A log that somebody or something cut short: etcd takes that for a write that a crash cut
// off, begins anew before what its database has, and waits for ever.
func TestALogThatIsCutShortIsNoticed(t *testing.T) {
	t.Parallel()
	closed, _ := eventful(t)
	scratch := t.TempDir()
	dir := filepath.Join(scratch, "whole")
	copySparse(t, dir, closed)
	want := recalled(t, dir)
	files, err := filepath.Glob(filepath.Join(closed, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	used := int64(len(bytes.TrimRight(content, "\x00")))
	for _, size := range []int64{0, 8, 1000, used / 3, used / 2, used - 200, used - 8, used - 1} {
		for _, zeros := range []bool{false, true} {
			t.Run(fmt.Sprintf("to %d of %d, %t", size, used, zeros), func(t *testing.T) {
				dir := filepath.Join(scratch, fmt.Sprint(size, zeros))
				copySparse(t, dir, closed)
				file := filepath.Join(dir, "etcd", "member", "wal", filepath.Base(files[0]))
				if err := os.Truncate(file, size); err != nil {
					t.Fatal(err)
				}
				if zeros {
					if err := os.Truncate(file, int64(len(content))); err != nil {
						t.Fatal(err)
					}
				}
				got := recalled(t, dir)
				wantRecalled(t, want, got)
				if text := strings.Join(got, "\n"); size < used/2 && (!strings.Contains(text, "damaged") || !strings.Contains(text, "restore a copy")) {
					t.Errorf("it does not say what to do: %s", text)
				}
			})
		}
	}
}

func TestAJournalWhoseFilesAreGoneIsNotBegunAnewUnlessToldSo(t *testing.T) {
	for _, gone := range []string{"etcd", "etcd/member", "etcd/member/snap", "etcd/member/snap/db", "etcd/member/wal"} {
		t.Run(gone, func(t *testing.T) {
			config := written(t)
			if err := os.RemoveAll(filepath.Join(config.DataDir, gone)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				j, err := Open(t.Context(), config)
				wantSentence(t, j, err, config.DataDir, "is damaged", "restore a copy of it, or move it away")
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("it is no damage: %v", err)
				}
			}
			if err := os.Rename(config.DataDir, config.DataDir+".damaged"); err != nil {
				t.Fatal(err)
			}
			if j := openJournal(t, config); len(j.Snapshot().Records) != 0 {
				t.Error("it is not empty")
			}
		})
	}
}

func TestRunningOutOfMemoryIsNotDamage(t *testing.T) {
	config := written(t)
	const want = "cannot allocate memory"
	output := openedApart(t, config.DataDir, 2<<30) // of the 10 GiB that etcd reserves
	if !strings.Contains(output, "etcd does not start in "+config.DataDir) || !strings.Contains(output, want) || strings.Contains(output, "damaged") {
		t.Errorf("it does not say %q: %s", want, output)
	}
	for _, errno := range []error{errMmapTooLarge, unix.EMFILE, unix.EIO, unix.ENOSPC, fmt.Errorf("mmap allocate error: %v", unix.ENOMEM)} { //nolint:errorlint // as bbolt says it
		if err := explainEtcd("/data", errno); errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "/data") {
			t.Errorf("%v is explained as %v", errno, err)
		}
	}
	if err := explainEtcd("/data", errors.New("walpb: crc mismatch")); !errors.Is(err, ErrDamaged) {
		t.Errorf("a wrong checksum is explained as %v", err)
	}
}

// spoil flips a bit of a value in etcd.
func spoil(t *testing.T, j *Journal, key string) {
	t.Helper()
	resp, err := j.store.client.Get(t.Context(), key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("%s: %v, %v", key, resp, err)
	}
	value := slices.Clone(resp.Kvs[0].Value)
	value[len(value)/2] ^= 4
	if _, err := j.store.client.Do(t.Context(), putBytes(key, value)); err != nil {
		t.Fatal(err)
	}
}

func TestHistoryBehindADamagedBatchIsServed(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 1
	j, term := own(t, config)
	from := j.Head()
	var positions []Position
	for n := range 6 {
		positions = append(positions, set(t, term, id(n), instance.StateStopped))
	}
	spoil(t, j, j.store.keys.logKey(positions[3].Seq))

	page, err := j.History(t.Context(), "", nil, from, 100)
	if err != nil || len(page.Entries) != 3 || page.Done || page.Next != positions[2] {
		t.Fatalf("before the damage are %d events up to %v, done %t, %v", len(page.Entries), page.Next, page.Done, err)
	}
	behind := func(err error) Position {
		t.Helper()
		e := wantError(t, err, instance.KindOutOfRange, instance.ReasonCursorExpired)
		if !strings.Contains(e.Message, fmt.Sprintf("batch %d", positions[3].Seq)) || !errors.Is(err, ErrDamaged) {
			t.Errorf("it does not say what is damaged: %v", err)
		}
		p, err := j.Resolve(t.Context(), e.Metadata[MetadataOldestCursor])
		if err != nil || p != positions[3] {
			t.Fatalf("it can be resumed at %v, %v, want %v", p, err, positions[3])
		}
		return p
	}
	_, err = j.History(t.Context(), "", nil, page.Next, 100)
	page, err = j.History(t.Context(), "", nil, behind(err), 100)
	if err != nil || len(page.Entries) != 2 || !page.Done {
		t.Errorf("behind the damage are %d events, done %t, %v", len(page.Entries), page.Done, err)
	}

	r := j.Read(from)
	for n := range 3 {
		if b, err := r.Next(t.Context()); err != nil || b.Position != positions[n] {
			t.Fatalf("batch %v, %v, want %v", b, err, positions[n])
		}
	}
	_, err = r.Next(t.Context())
	r = j.Read(behind(err))
	for n := 4; n < 6; n++ {
		if b, err := r.Next(t.Context()); err != nil || b.Position != positions[n] {
			t.Fatalf("batch %v, %v, want %v", b, err, positions[n])
		}
	}
}

func TestADamagedBatchIsTrimmedWithTheOthers(t *testing.T) {
	j, term := own(t, testConfig(t))
	var last Position
	for n := range 8 {
		last = set(t, term, id(n), instance.StateStopped)
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq < last.Seq; seq += 2 {
		spoil(t, j, j.store.keys.logKey(seq))
	}
	trimTo(t, term, time.Now().Add(time.Hour), 1<<40)
	if oldest := j.Oldest(); oldest.Seq != last.Seq-1 {
		t.Errorf("history begins after batch %d, want %d", oldest.Seq, last.Seq-1)
	}
}

func TestADamagedInstanceIsRebuiltFromHistoryOrNamed(t *testing.T) {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	term := campaign(t, j)
	set(t, term, id(1), instance.StateStopped)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 5; n++ {
		set(t, term, id(n), instance.StateStopped)
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := contents(j.Snapshot())
	spoil(t, j, j.store.keys.instances+string(id(1)))
	closeJournal(t, j)

	if j, err = Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, contents(j.Snapshot())); diff != "" {
		t.Errorf("it is known otherwise (-want +got):\n%s", diff)
	}
	term = campaign(t, j)
	set(t, term, id(5), instance.StateStopped)
	if err := term.checkpointer.write(t.Context()); err != nil { // mends it
		t.Fatal(err)
	}
	trimTo(t, term, time.Now().Add(time.Hour), 1<<40)
	closeJournal(t, j)
	if j, err = Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	key := j.store.keys.instances + string(id(1))
	spoil(t, j, key)
	closeJournal(t, j)
	j, err = Open(t.Context(), config)
	wantSentence(t, j, err, key, "its checksum is wrong", "history does not reach back", "restore a copy")
}

// What has become another key by a flipped bit is missing at its own.
func TestAMissingOrSurplusKeyIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *keys) clientv3.Op
		want  string
	}{
		"a batch is missing":      {func(k *keys) clientv3.Op { return clientv3.OpDelete(k.logKey(2)) }, "of batches 1 to 5 it has 4"},
		"the last one is missing": {func(k *keys) clientv3.Op { return clientv3.OpDelete(k.logKey(5)) }, "of batches 1 to 5 it has 4"},
		"an instance is missing":  {func(k *keys) clientv3.Op { return clientv3.OpDelete(k.instances + string(id(3))) }, "the checkpoint is damaged: it lacks instances"},
		"the head is missing":     {func(k *keys) clientv3.Op { return clientv3.OpDelete(k.head) }, "it ends with batch 0"},
		"a key that no journal writes": {func(k *keys) clientv3.Op {
			return clientv3.OpPut(strings.Replace(k.logKey(9), "log", "lo'", 1), "")
		}, "which no journal writes"},
		"a key of no log": {func(k *keys) clientv3.Op {
			return clientv3.OpPut("/instances"+strings.TrimPrefix(k.logKey(9), "/instanced"), "")
		}, "there is no log that"},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			j, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			term := campaign(t, j)
			for n := range 5 {
				set(t, term, id(n), instance.StateStopped)
			}
			if err := term.checkpointer.write(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := j.store.client.Do(t.Context(), c.spoil(&j.store.keys)); err != nil {
				t.Fatal(err)
			}
			closeJournal(t, j)
			j, err = Open(t.Context(), config)
			wantSentence(t, j, err, c.want, "restore a copy")
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("it is no damage: %v", err)
			}
		})
	}
}

func TestALogOfAnotherPrefixIsNoDamage(t *testing.T) {
	config := written(t)
	other := config
	other.Prefix = "/other"
	j, err := Open(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	set(t, campaign(t, j), id(2), instance.StateStopped)
	closeJournal(t, j)
	for _, c := range []Config{config, other} {
		if j := openJournal(t, c); len(j.Snapshot().Records) != 1 {
			t.Errorf("%s has %v", c.Prefix, j.Snapshot().Records)
		} else {
			closeJournal(t, j)
		}
	}
}

// unused returns the database and the log of an etcd that has nothing in it.
func unused(f *testing.F) (db, wal []byte) {
	f.Helper()
	dir := f.TempDir()
	server, err := startEtcd(f.Context(), filepath.Join(dir, "etcd"), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	server.Close()
	if db, err = os.ReadFile(filepath.Join(dir, "etcd", "member", "snap", "db")); err != nil {
		f.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(files) != 1 {
		f.Fatal(files, err)
	}
	if wal, err = os.ReadFile(files[0]); err != nil {
		f.Fatal(err)
	}
	return db, append(bytes.TrimRight(wal, "\x00"), make([]byte, 64)...)
}

// FuzzVerifyDatabase: whatever is in the file, it is verified or said to be damaged.
func FuzzVerifyDatabase(f *testing.F) {
	db, _ := unused(f)
	f.Add(db)
	f.Add(db[:len(db)/2])
	f.Add([]byte{})
	k := newKeys("/instanced")
	path := filepath.Join(f.TempDir(), "db")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verifyDatabase(path, &k); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}

// FuzzVerifyWAL: whatever is in the file, it is verified or said to be damaged.
func FuzzVerifyWAL(f *testing.F) {
	_, wal := unused(f)
	f.Add(wal)
	f.Add(wal[:len(wal)/2])
	f.Add([]byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, "0.wal"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verifyWAL(dir); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}
