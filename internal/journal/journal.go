package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
)

// openTimeout is how long an external etcd may take to answer when the journal is
// opened.
const openTimeout = 10 * time.Second

// Journal is an open log. Open makes one.
type Journal struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	// maxBatches is how many batches of history are kept.
	maxBatches uint64
	// process tells this journal from every other that ever owned the log.
	process [16]byte

	dir    *dataDir    // nil for an external etcd
	disk   *disk       // nil for an external etcd
	server *embed.Etcd // nil for an external etcd
	budget budget
	store  *store
	view   *view
	// cursors are remembered, as many ask for the same.
	cursors cursorCache

	// refreshMu is held by whoever brings the view up to date from etcd.
	refreshMu mutex
	// campaign is held by whoever becomes the owner.
	campaign mutex

	// lastContact is when etcd last answered.
	lastContact atomic.Pointer[time.Time]

	// compactionDenied is for the first time that etcd does not let this process compact it.
	compactionDenied sync.Once

	// damaged has the numbers of the damaged batches that the log was told of.
	damaged sync.Map

	// pageReads has a place for each page that is being read.
	pageReads *instance.Places

	mu sync.Mutex
	// term is the last time of ownership, nil before the first. Guarded by mu, as
	// the rest.
	term   *Term
	owner  string // the address of the owner in etcd
	closed bool

	// life ends when the journal is closed, by a call of stop, and with it what runs
	// in the background, and whatever waits for etcd.
	life       context.Context
	stop       context.CancelFunc
	background sync.WaitGroup
	// draining is closed when Drain is called, and drained drainTimeout later: from then on
	// no write waits for what holds it up.
	draining chan struct{}
	drained  chan struct{}
	drain    sync.Once
	// using is held for reading by whoever uses etcd on behalf of a caller, so that
	// it is not closed under them.
	using sync.RWMutex
}

// Open opens the log, or creates it, and returns once its contents are loaded. It does not
// make this process the owner. Errors are sentences for the operator: they name the fault and,
// where that helps, the remedy.
func Open(ctx context.Context, config Config) (*Journal, error) {
	return openWith(ctx, config, freeSpace)
}

func openWith(ctx context.Context, config Config, statfs func(string) (int64, error)) (*Journal, error) {
	j := &Journal{
		config:    config.withDefaults(),
		refreshMu: newMutex(),
		campaign:  newMutex(),

		pageReads: instance.NewPlaces(maxPageReads),
		draining:  make(chan struct{}),
		drained:   make(chan struct{}),
	}
	j.log, j.metrics = j.config.Logger, newMetrics(j.config.Metrics)
	j.maxBatches = uint64(j.config.MaxBytes / minBytesPerBatch)
	j.budget = j.config.budget()
	j.view = newView(j.config.RingBytes)
	_, _ = rand.Read(j.process[:]) // never fails: crypto/rand ends the process instead
	if j.config.MaxBytes < MinMaxBytes {
		return nil, fmt.Errorf("a journal of %d bytes of history is too small: it needs 1 MiB (%d bytes) or more",
			j.config.MaxBytes, MinMaxBytes)
	}
	if err := j.connect(ctx, statfs); err != nil {
		return nil, errors.Join(err, j.disconnect())
	}
	if !j.store.embedded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, openTimeout, errors.New("it does not answer"))
		defer cancel()
		if err := j.store.members.check(ctx, &j.store.keys); err != nil {
			return nil, errors.Join(err, j.disconnect())
		}
		j.store.members.startProbing()
	}
	if err := j.loadLocked(ctx); err != nil {
		return nil, errors.Join(j.explain(ctx, err), j.disconnect())
	}
	if format := j.store.meta.Load().GetFormatVersion(); format < formatVersion {
		j.log.Info("the journal is of an older format, which the version before this one can read too; \"instanced upgrade finalize\" raises it",
			slog.Int("format", int(max(format, minWrittenFormat))), slog.Int("newest_format", formatVersion))
	}
	if j.dir != nil { // an older binary is to find it there already
		if err := j.dir.raise(int(j.store.meta.Load().GetFormatVersion())); err != nil {
			return nil, errors.Join(err, j.disconnect())
		}
	}
	j.noteContact()
	if j.config.Metrics != nil {
		j.config.Metrics.MustRegister(newCollector(j))
	}
	j.life, j.stop = context.WithCancel(context.Background())
	if !j.store.embedded {
		j.background.Go(func() { j.followOwner(j.life) })
	}
	return j, nil
}

// connect opens etcd, whichever it is.
func (j *Journal) connect(ctx context.Context, statfs func(string) (int64, error)) (err error) {
	k := newKeys(j.config.Prefix)
	if len(j.config.Endpoints) > 0 {
		j.store, err = externalStore(j.config, k)
		return err
	}
	if j.config.DataDir == "" {
		return errors.New("the journal needs a data directory, or the endpoints of an etcd cluster")
	}
	if j.dir, err = openDir(j.config.DataDir, j.config.Version); err != nil {
		return err
	}
	j.disk = newDisk(j.config.DataDir, j.config.MinFreeDisk, statfs, j.log)
	if err := j.disk.start(!j.dir.started()); err != nil {
		return err
	}
	if err := j.dir.verifyEtcd(&k); err != nil {
		return err
	}
	j.server, err = startEtcd(ctx, j.dir.etcd(), j.log)
	if err != nil {
		return err
	}
	j.store = embeddedStore(j.server, k)
	if err := j.dir.hasStarted(); err != nil {
		return err
	}
	if err := j.lift(ctx); err != nil {
		return err
	}
	return j.shrink(ctx)
}

// disconnect closes what connect opened, in the reverse order.
func (j *Journal) disconnect() error {
	var errs []error
	if j.store != nil {
		if j.store.members != nil {
			j.store.members.close()
		}
		if err := j.store.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	if j.server != nil {
		j.server.Close()
	}
	if j.dir != nil {
		errs = append(errs, j.dir.close())
	}
	return errors.Join(errs...)
}

func (j *Journal) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if j.store.embedded && errors.Is(err, ErrDamaged) {
		return errDamaged(j.config.DataDir, err)
	}
	if j.store.embedded {
		return fmt.Errorf("the journal in %s cannot be read: %w", j.config.DataDir, err)
	}
	if why := j.store.members.explain(err, &j.store.keys); why != err { //nolint:errorlint // not what is in it
		return why
	}
	return fmt.Errorf("the journal in etcd at %s cannot be read: %w", strings.Join(j.config.Endpoints, ", "), err)
}

func externalStore(c Config, k keys) (*store, error) {
	members, err := newMembers(c, k.meta)
	if err != nil {
		return nil, err
	}
	return &store{client: members.client(), members: members, keys: k, maxOps: maxExternalTxnOps}, nil
}

// drainTimeout is how long a write that is held up may delay a shutdown: long enough for
// another member of etcd to be used in place of one that fell silent.
const drainTimeout = 1500 * time.Millisecond

// Drain announces that Close will follow. A write that is still held up 1.5 seconds later, by
// a full disk or by etcd, fails and ends the term, so that its callers are told why and the
// shutdown need not wait for them. From now on Campaign begins no term.
func (j *Journal) Drain() {
	j.drain.Do(func() {
		close(j.draining)
		time.AfterFunc(drainTimeout, func() { close(j.drained) })
	})
}

// Close gives up the ownership, writes a checkpoint, ends all readers with
// [instance.ReasonJournalUnavailable], and closes etcd. Updates that were submitted before are finished
// first, for as long as ctx allows and no longer than [Journal.Drain] says when they are held
// up. Whatever was acknowledged is on disk in any case.
func (j *Journal) Close(ctx context.Context) error {
	j.Drain()
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	term := j.term
	j.mu.Unlock()

	var err error
	if term != nil {
		err = term.resign(ctx)
	}
	j.view.close()
	j.stop()
	j.background.Wait()
	j.using.Lock() // waits for the calls that use etcd; no new ones begin
	defer j.using.Unlock()
	return errors.Join(err, j.disconnect())
}

// enter begins a use of etcd on behalf of a caller, unless the journal is closed.
// The context is the caller's, and also ends when the journal is closed. The use
// ends with a call of leave.
func (j *Journal) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	j.using.RLock()
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		j.using.RUnlock()
		return nil, nil, errClosed()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(j.life, func() { cancel(errClosed()) })
	return ctx, func() {
		unlink()
		cancel(nil)
		j.using.RUnlock()
	}, nil
}

// LogID returns the id of the log, in hex. It never changes, but for an external
// log that somebody deletes.
func (j *Journal) LogID() string {
	id := j.view.logID()
	return hex.EncodeToString(id[:])
}

func newLogID() (id logID) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return id
}

// Head returns the position of the last batch.
func (j *Journal) Head() Position { return j.view.tip().head }

// Get returns the current record of an instance.
func (j *Journal) Get(id instance.ID) (Record, bool) {
	record, ok := j.view.get(id)
	if !ok {
		return Record{}, false
	}
	return *record, true
}

// Oldest returns the oldest position that can be resumed from.
func (j *Journal) Oldest() Position { return j.view.oldestPosition() }

// Owner returns the address of the process that may write, empty when there is
// none or it gave none, and whether it is this process.
func (j *Journal) Owner() (address string, mine bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.term != nil && j.term.Err() == nil {
		return j.config.Address, true
	}
	return j.owner, false
}

func (j *Journal) setOwner(o *storagev1.Owner) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.owner = ""
	// What an embedded log says of its owner is what this process wrote, or a
	// process that is gone.
	if !j.store.embedded && string(o.GetProcess()) != string(j.process[:]) {
		j.owner = o.GetAddress()
	}
}
