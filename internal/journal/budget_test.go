package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
)

// onBudget opens a journal whose database may take less than can be asked for, and becomes
// its owner. Neither may take long, whatever there is in it.
func onBudget(t testing.TB, c Config, b budget) (*Journal, *Term) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	j, err := Open(ctx, c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	j.budget, j.config.MaxBytes = b, int64(b/2)
	term, err := j.Campaign(ctx)
	if err != nil {
		closeJournal(t, j)
		t.Fatalf("Campaign: %v", err)
	}
	return j, term
}

// crash ends a term as the end of the process does: nothing more is written.
func crash(t testing.TB, j *Journal, term *Term) {
	t.Helper()
	_ = term.end(errClosed())
	term.work.Wait()
	closeJournal(t, j)
}

// mustUpdate submits an update until it is recorded: it may be refused while room is made, but
// not for long.
func mustUpdate(t testing.TB, term *Term, fn func(tx *Tx)) {
	t.Helper()
	for begun := time.Now(); ; {
		_, err := term.Update(t.Context(), func(tx *Tx) error { fn(tx); return nil })
		if err == nil {
			return
		}
		wantReason(t, err, instance.KindExhausted, instance.ReasonJournalFull)
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("the journal cannot be written again: %v", err)
		}
	}
}

// command is what becomes of a token for a request that names some ids: the intent and the
// answer. It reports whether the intent was accepted.
func command(t testing.TB, term *Term, key, principal string, ids []instance.ID) (accepted bool) {
	t.Helper()
	token := Token{Key: key, Principal: principal, Fingerprint: make([]byte, 32), CreatedAt: time.Now(), IDs: ids, Intent: term.journal.Head()}
	mustUpdate(t, term, func(tx *Tx) {
		tx.PutToken(token)
		e, _ := errors.AsType[*instance.Error](tx.Err())
		if accepted = e == nil || e.Reason != instance.ReasonTooManyClientTokens; !accepted {
			tx.reset(tx.position)
		}
	})
	if !accepted {
		return false
	}
	mustUpdate(t, term, func(tx *Tx) {
		token.Answer = &Answer{EndCursor: term.journal.Cursor(tx.Position()), Cursor: term.journal.Cursor(token.Intent)}
		for n, id := range ids {
			if n < 20 {
				tx.Append(change(id, instance.StatePending))
			}
			token.Answer.Changes = append(token.Answer.Changes, instance.StateChange{
				ID: id, Previous: instance.StateStopped, Current: instance.StatePending, At: launch,
			})
		}
		tx.PutToken(token)
	})
	return true
}

func idsFrom(first, number int) []instance.ID {
	ids := make([]instance.ID, number)
	for n := range ids {
		ids[n] = id(first + n)
	}
	return ids
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// An earlier version gave etcd a quota, and did not count what client tokens took of it.
// Once it was used up, a start never ended.
func TestAJournalThatAnEarlierVersionFilledIsWrittenAgain(t *testing.T) {
	config := testConfig(t)
	config.MaxBytes = 8 << 20 // the database may take 64 MiB
	j, term := own(t, config)
	set(t, term, id(1), instance.StateStopped)
	var expired, kept int
	const tokenSize = 58_000
	token := &Token{Fingerprint: []byte(noise(tokenSize))}
	for size := 0; size < minBudget; {
		var ops []clientv3.Op
		for range 16 {
			age := 23 * time.Hour
			if expired <= kept {
				age = 25 * time.Hour
				expired++
			} else {
				kept++
			}
			key := j.store.keys.tokenKey(time.Now().Add(-age), fmt.Sprint(size))
			ops = append(ops, putBytes(key, j.store.seal(appendToken(j.store.reserveSeal(nil), token, logID{}, false), 0, key)))
			size += tokenSize
		}
		if err := term.change(t.Context(), logPoint{}, ops...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := j.server.Server.Alarm(t.Context(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE,
		Alarm:  etcdserverpb.AlarmType_NOSPACE,
	}); err != nil {
		t.Fatal(err)
	}
	head := j.Head()
	crash(t, j, term)

	var log syncBuffer
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	j, err := Open(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	if term, err = j.Campaign(ctx); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	mustUpdate(t, term, func(tx *Tx) { tx.Append(change(id(1), instance.StatePending)) })
	if got := j.Head().Seq; got != head.Seq+1 || time.Since(begun) > time.Minute {
		t.Errorf("the log goes on at %d after %v, want %d", got, time.Since(begun), head.Seq+1)
	}
	await(t, func() bool { crowded, _ := term.crowded(); return !crowded })
	await(t, func() bool { return strings.Contains(log.String(), "made room in the journal") })
	for _, said := range []string{"etcd took no writes", fmt.Sprintf("expired_client_tokens=%d", expired), "client tokens take more of the journal than their share"} {
		if !strings.Contains(log.String(), said) {
			t.Errorf("the log does not say %q:\n%s", said, log.String())
		}
	}
	if got := j.Stats().ClientTokens; got != kept {
		t.Errorf("%d tokens, want the %d that have not expired", got, kept)
	}
	// Until enough of them have, there is no room for more, and for everything else there is.
	if command(t, term, "new", "alice", []instance.ID{id(2)}) {
		t.Error("a token was accepted beyond the share of tokens")
	}
	set(t, term, id(2), instance.StateStopped)
	if _, err := term.expireTokens(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !command(t, term, "new", "alice", []instance.ID{id(2)}) {
		t.Error("no token is accepted although all have expired")
	}
}

// It takes long to make room in a large database, or may never succeed.
func TestATermEndsAtOnceWhileItMakesRoom(t *testing.T) {
	j, term := onBudget(t, testConfig(t), 1<<20)
	if err := term.maintenance.lock(t.Context()); err != nil { // so that no room can be made
		t.Fatal(err)
	}
	updates := make(chan error, 1)
	var run atomic.Bool
	term.limit.Store(0)
	go func() {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			run.Store(true)
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		updates <- err
	}()
	await(t, run.Load)
	select {
	case err := <-updates:
		t.Fatalf("the update did not wait for room: %v", err)
	default:
	}
	term.stopMaintaining()
	term.maintenance.unlock()
	closeJournal(t, j)
	if err := <-updates; err != nil {
		t.Errorf("what was under way: %v", err)
	}
}

// The budget is small, and so are the tokens: an ordinary load on the least that can be
// asked for, scaled down.
func TestTokensFillTheirShareAndNothingElse(t *testing.T) {
	config := testConfig(t)
	j, term := onBudget(t, config, 2<<20)
	accepted, more := 0, true
	for range 20 {
		refused := false
		mustUpdate(t, term, func(tx *Tx) {
			for n := range 200 {
				tx.PutToken(Token{Key: fmt.Sprint(accepted, n), Principal: "alice", Fingerprint: make([]byte, 32), IDs: []instance.ID{id(n)}})
			}
			e, _ := errors.AsType[*instance.Error](tx.Err())
			if refused = e != nil && e.Reason == instance.ReasonTooManyClientTokens; refused {
				tx.reset(tx.position)
			}
		})
		if refused {
			more = false
			break
		}
		accepted += 200
	}
	use := term.tokens.inUse()
	if accepted == 0 || more || use.count != accepted || use.bytes > j.budget.tokens()/2 {
		t.Errorf("%d of 4000 tokens were accepted, which take %d bytes; one principal may have %d", accepted, use.bytes, j.budget.tokens()/2)
	}
	if command(t, term, "alice's", "alice", idsFrom(1, 1000)) {
		t.Error("a principal got more than its share")
	}
	if !command(t, term, "bob's", "bob", idsFrom(1, 1000)) {
		t.Error("one principal has used up the tokens of another")
	}
	for n := range 300 { // several times the budget
		mustUpdate(t, term, func(tx *Tx) {
			c := change(id(n%5), instance.States()[n%6])
			c.After.Tags["noise"] = noise(20_000)
			tx.Append(c)
		})
	}
	if got := j.Stats().ClientTokens; got != accepted+1 {
		t.Errorf("%d tokens, want %d", got, accepted+1)
	}
	j.server.Server.Backend().ForceCommit() // else all of it may have been written since etcd last measured
	set(t, term, id(1), instance.StateStopped)
	await(t, func() bool { crowded, _ := term.crowded(); return !crowded })
	if s := j.Stats(); s.Bytes == 0 || s.Bytes > uint64(j.budget) {
		t.Errorf("%d bytes of history are kept, of a budget of %d", s.Bytes, j.budget)
	}
	closeJournal(t, j)
}

// Whatever the budget is, and whatever was put into the journal: it can be written again
// once tokens have expired, also without any history, and a start ends. INSTANCED_SOAK makes
// it go on for as long as that, with other loads each time; INSTANCED_SOAK_SEED is the first.
func TestAJournalCanAlwaysBeWrittenAgain(t *testing.T) {
	first, loads := uint64(1), uint64(6)
	soak, _ := time.ParseDuration(os.Getenv("INSTANCED_SOAK"))
	if soak > 0 {
		first = uint64(rand.Uint32())
	}
	if given, err := strconv.ParseUint(os.Getenv("INSTANCED_SOAK_SEED"), 10, 64); err == nil {
		first = given
	}
	begun := time.Now()
	for n := uint64(0); n < loads || time.Since(begun) < soak; n++ {
		if !t.Run(fmt.Sprint("load ", first+n), func(t *testing.T) { loadOnBudget(t, first+n) }) {
			return
		}
	}
}

func loadOnBudget(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, seed))
	config := testConfig(t)
	config.MaxClientTokens = 1 + random.IntN(2000)
	total := budget(1<<20 + random.IntN(3<<20))
	instances := 1 + random.IntN(2000)
	number := 0
	for range 3 {
		j, term := onBudget(t, config, total)
		for range 25 {
			switch number++; random.IntN(5) {
			case 0, 1:
				size, first := 1+random.IntN(50), random.IntN(instances)
				filler := noise(random.IntN(4000))
				mustUpdate(t, term, func(tx *Tx) {
					for n := range size {
						c := change(id((first+n)%instances), instance.States()[random.IntN(6)])
						c.After.Tags["filler"] = filler
						tx.Append(c)
					}
				})
			case 2, 3:
				ids := idsFrom(random.IntN(instances), 1+random.IntN(500))
				principal := fmt.Sprint("principal ", random.IntN(4))
				for n := range 10 {
					command(t, term, fmt.Sprint("token ", number, n), principal, ids)
				}
			case 4:
				if _, err := term.expireTokens(t.Context(), time.Now().Add(25*time.Hour)); err != nil {
					t.Fatal(err)
				}
				if got := j.Stats(); got.ClientTokens != 0 || got.ClientTokenBytes != 0 {
					t.Fatalf("%d tokens of %d bytes after all have expired", got.ClientTokens, got.ClientTokenBytes)
				}
				if !command(t, term, fmt.Sprint("token ", number), "a newcomer", []instance.ID{id(1)}) {
					t.Fatal("no token is accepted although all have expired")
				}
			}
		}
		if use := term.tokens.inUse(); use.count > config.MaxClientTokens || use.bytes > total.tokens() {
			t.Errorf("%d tokens of %d bytes, want at most %d of %d", use.count, use.bytes, config.MaxClientTokens, total.tokens())
		}
		etcd, err := j.store.loadTokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantSameIndex(t, term.tokens, etcd)
		if random.IntN(2) == 0 {
			crash(t, j, term)
		} else {
			closeJournal(t, j)
		}
	}

	// Without instances and tokens there is all the room again.
	j, term := onBudget(t, config, total)
	defer closeJournal(t, j)
	mustUpdate(t, term, func(tx *Tx) {
		for _, record := range j.Snapshot().Records {
			tx.Append(instance.Change{Before: record.Instance})
		}
	})
	if _, err := term.expireTokens(t.Context(), time.Now().Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := term.maintenance.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer term.maintenance.unlock()
	if err := term.makeRoomLocked(t.Context()); err != nil {
		t.Fatal(err)
	}
	if inUse := j.inUse(); inUse > int64(total)/4*3 || term.limit.Load() != int64(total) {
		t.Errorf("%d bytes of %d are in use, and the limit is %d", inUse, total, term.limit.Load())
	}
}
