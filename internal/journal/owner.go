package journal

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// Term is a time during which this process owns the log, and nobody else can
// write to it.
type Term struct {
	journal *Journal
	// revision is that at which the owner key was created; every write compares it.
	revision int64
	epoch    uint64
	lease    clientv3.LeaseID // 0 for the embedded etcd
	tokens   *tokenIndex
	writer   *writer

	// ctx ends with the term, and maintaining when the term is about to end: then nothing is
	// tidied any more, nor is it waited for.
	ctx             context.Context
	cancel          context.CancelFunc
	maintaining     context.Context
	stopMaintaining context.CancelFunc
	// work is what runs during the term.
	work sync.WaitGroup
	// renewed is how etcd last extended the lease; nil for the embedded etcd.
	renewed atomic.Pointer[renewal]
	// roomNeeded asks for room to be made in etcd, and checkpointDue for it to be looked whether a
	// checkpoint is due; unblocked is signalled when either was done.
	roomNeeded, checkpointDue, unblocked chan struct{}
	// limit is how many bytes of the embedded etcd's database may be in use before the
	// writer waits.
	limit atomic.Int64
	// maintenance is held by the task that is under way. It guards saved, the last
	// batch that the checkpoint in etcd reflects, when that was written in this term,
	// and compactable, a revision before which nothing is needed.
	maintenance mutex
	saved       logPoint
	savedAt     time.Time
	compactable int64
	// savedBytes is how long the log was at the checkpoint.
	savedBytes atomic.Uint64

	mu  sync.Mutex
	err *instance.Error // guarded by mu
}

// Campaign makes this process the owner of the log and begins a new epoch.
// With an external etcd it waits until the present owner gives up or is silent
// for its time to live, and outlasts failures of etcd; the embedded one belongs
// to this process alone. The view is complete up to the end of the log when it
// returns. While a term of this journal lasts, Campaign waits for its end; after
// [Journal.Drain] it waits until ctx ends or the journal is closed.
// Errors are those of ctx, and [instance.ReasonJournalUnavailable] when the journal is closed.
func (j *Journal) Campaign(ctx context.Context) (*Term, error) {
	ctx, leave, err := j.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := j.campaign.lock(ctx); err != nil {
		return nil, err
	}
	defer j.campaign.unlock()
	if err := j.awaitTermEnd(ctx); err != nil {
		return nil, err
	}
	select {
	case <-j.draining:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	default:
	}
	pause := minRetryPause
	for {
		t, err := j.tryCampaign(ctx)
		switch {
		case err == nil:
			return t, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, errTaken):
			continue
		case j.store.embedded:
			return nil, errUnavailable("the journal cannot be written to", err)
		}
		j.log.WarnContext(ctx, "this process cannot become the owner of the journal yet", slog.Any("error", err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// awaitTermEnd waits until the term before is over, with all that ran in it.
func (j *Journal) awaitTermEnd(ctx context.Context) error {
	j.mu.Lock()
	before := j.term
	j.mu.Unlock()
	if before == nil {
		return nil
	}
	select {
	case <-before.Done():
		before.work.Wait()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// tryCampaign takes the log over, once nobody owns it. The error is errTaken when
// somebody else did first.
func (j *Journal) tryCampaign(ctx context.Context) (*Term, error) {
	t := &Term{
		journal:       j,
		roomNeeded:    make(chan struct{}, 1),
		checkpointDue: make(chan struct{}, 1),
		unblocked:     make(chan struct{}, 1),
		maintenance:   newMutex(),
	}
	t.limit.Store(int64(j.budget))
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.maintaining, t.stopMaintaining = context.WithCancel(t.ctx)
	t.writer = newWriter(t)
	err := t.acquire(ctx)
	if err == nil {
		err = t.begin(ctx)
	}
	if err == nil {
		err = j.install(t)
	}
	if err != nil {
		t.cancel()
		t.release(ctx)
		t.work.Wait()
		return nil, err
	}
	t.writer.start()
	t.work.Go(t.maintain)
	return t, nil
}

// install makes t the present term, unless the journal was closed meanwhile.
func (j *Journal) install(t *Term) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed()
	}
	j.term = t
	return nil
}

// acquire waits until nobody owns the log, and creates the owner key.
func (t *Term) acquire(ctx context.Context) error {
	for {
		free, err := t.await(ctx)
		if err != nil {
			return err
		}
		if free {
			return t.claim(ctx)
		}
	}
}

// await returns when the owner key is gone, or true when it never was. A key of
// this process's own, or of the only process that there can be, is deleted.
func (t *Term) await(ctx context.Context) (free bool, err error) {
	j := t.journal
	c, err := j.store.control(ctx, 0)
	if err != nil || c.owner == nil {
		return true, err
	}
	j.setOwner(c.owner)
	if j.store.embedded || string(c.owner.GetProcess()) == string(j.process[:]) {
		_, err := j.store.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(j.store.keys.owner), "=", c.ownerRevision)).
			Then(clientv3.OpDelete(j.store.keys.owner)).
			Commit()
		return false, err
	}
	return false, j.store.awaitDeletion(ctx, j.store.keys.owner, c.ownerRevision)
}

// awaitDeletion waits until a key is deleted that existed at a revision.
func (s *store) awaitDeletion(ctx context.Context, key string, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := s.client.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(revision+1), clientv3.WithFilterPut())
	for resp := range watch {
		if err := resp.Err(); err != nil && resp.CompactRevision == 0 {
			return err
		}
		if len(resp.Events) > 0 || resp.CompactRevision != 0 {
			return nil
		}
	}
	return errors.New("the watch of the owner has ended")
}

// errTaken means that another process became the owner first.
var errTaken = errors.New("another process owns the journal")

// claim creates the owner key, unless somebody else was faster. An external etcd may have
// used up its quota; then, as long as nobody owns the log, what has expired goes, and
// history, so that its operator can make room.
func (t *Term) claim(ctx context.Context) (err error) {
	if err = t.tryClaim(ctx); !noSpace(err) {
		return err
	}
	if t.saved, err = t.journal.store.checkpointed(ctx); err != nil {
		return err
	}
	return t.makeRoom(ctx)
}

func (t *Term) tryClaim(ctx context.Context) error {
	j := t.journal
	var options []clientv3.OpOption
	if !j.store.embedded {
		if err := t.grant(ctx); err != nil {
			return err
		}
		options = append(options, clientv3.WithLease(t.lease))
	}
	owner := &storagev1.Owner{Address: j.config.Address, Process: j.process[:], SinceNs: codec.Nanoseconds(time.Now())}
	resp, err := j.store.client.Txn(ctx).
		If(
			clientv3.Compare(clientv3.CreateRevision(j.store.keys.owner), "=", 0),
			clientv3.Compare(clientv3.ModRevision(j.store.keys.meta), "=", j.store.metaRevision.Load()), // for the format
		).
		Then(j.store.put(j.store.keys.owner, owner, options...)).
		Commit()
	switch {
	case err != nil:
		return err
	case !resp.Succeeded:
		return errTaken
	}
	t.revision = resp.Header.GetRevision()
	return nil
}

// grant takes a lease, and keeps it until the term ends or etcd says that it has
// expired.
func (t *Term) grant(ctx context.Context) error {
	asked := time.Now()
	lease, err := t.journal.store.client.Grant(ctx, int64(t.journal.config.OwnerTTL/time.Second))
	if err != nil {
		return err
	}
	t.lease = lease.ID
	t.renewed.Store(&renewal{asked, time.Duration(lease.TTL) * time.Second})
	t.work.Go(t.keepLease)
	return nil
}

// begin brings the view to the end of the log, which is final now that nobody
// else can write, and appends an epoch.
func (t *Term) begin(ctx context.Context) (err error) {
	j := t.journal
	if err := j.refreshMu.lock(ctx); err != nil {
		return err
	}
	defer j.refreshMu.unlock()
	if err := j.refreshLocked(ctx); err != nil {
		return err
	}
	if t.saved, err = j.store.checkpointed(ctx); err != nil {
		return err
	}
	if t.saved.seq > 0 {
		h, err := j.store.header(ctx, t.saved.seq)
		if err != nil {
			return err
		}
		t.savedBytes.Store(h.Preceding)
	}
	tip := j.view.tip()
	list := j.view.listEpochs().since(j.view.oldestPosition().Seq).begin(tip.head.Seq+1, time.Now())
	ops := []clientv3.Op{j.store.putEpochs(list)}
	c, err := j.store.control(ctx, 0)
	if err != nil {
		return err
	}
	if was := c.meta.GetFormatVersion(); c.meta != nil && was < minWrittenFormat { // from now on older processes must not read it
		j.log.InfoContext(ctx, "the format of the journal is raised; earlier versions of this program can no longer read it",
			slog.Int("was", int(was)), slog.Int("format", minWrittenFormat))
		meta := proto.CloneOf(c.meta)
		meta.FormatVersion, meta.ProgramVersion = minWrittenFormat, j.config.Version
		ops = append(ops, j.store.put(j.store.keys.meta, meta))
	}
	if err := t.change(ctx, logPoint{tip.head.Seq, tip.revision}, ops...); err != nil {
		return err
	}
	j.view.setEpochs(list)
	t.epoch = list.last().id
	if t.tokens, err = j.store.loadTokens(ctx); err != nil {
		return err
	}
	if use := t.tokens.inUse(); use.bytes > j.budget.tokens() {
		j.log.WarnContext(ctx, "client tokens take more of the journal than their share; new ones are refused until enough have expired",
			slog.Int("client_tokens", use.count), slog.Int64("client_token_bytes", use.bytes), slog.Int64("max_client_token_bytes", j.budget.tokens()))
	}
	if crowded, _ := t.crowded(); crowded {
		signal(t.roomNeeded)
	}
	return nil
}

// owns is the comparison that only the owner's transactions pass; before the claim, only
// those made while nobody owns the log.
func (t *Term) owns() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(t.journal.store.keys.owner), "=", t.revision)
}

// Epoch returns the epoch of every position written during the term.
func (t *Term) Epoch() uint64 { return t.epoch }

// Done is closed when the term is over: another process may own the log, or the
// journal was closed.
func (t *Term) Done() <-chan struct{} { return t.ctx.Done() }

// Err returns nil during the term. Later it returns why it ended, of type
// [instance.Error]: [instance.ReasonNotOwner], or [instance.ReasonJournalUnavailable] for a journal that
// was closed.
func (t *Term) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	return nil
}

// ended returns a copy of why the term ended.
func (t *Term) ended() *instance.Error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return new(*t.err)
}

// end ends the term, unless it has ended already, and returns the error.
func (t *Term) end(err *instance.Error) error {
	t.mu.Lock()
	first := t.err == nil
	if first {
		t.err = err
	}
	t.mu.Unlock()
	if first {
		t.cancel()
		if err.Reason != instance.ReasonJournalUnavailable {
			t.journal.log.Warn("this process no longer owns the journal", slog.Any("error", err))
		}
	}
	return err
}

// Writable returns why an update would fail now: to be asked before anything is
// done that has to be recorded. Nil is no promise. Errors, of type
// [instance.Error]: [instance.ReasonNotOwner], [instance.ReasonJournalUnavailable], [instance.ReasonJournalFull].
func (t *Term) Writable() error {
	if err := t.Err(); err != nil {
		return err
	}
	if stalled := t.writer.stalled.Load(); stalled != nil {
		return stalled
	}
	if t.lease != 0 {
		silent := time.Since(t.renewed.Load().asked)
		if silent > t.journal.config.OwnerTTL*2/3 {
			return errSilent(silent)
		}
	}
	return t.journal.disk.check()
}

// resign ends the term in good order: all updates are written, the checkpoint
// reflects them, and the next owner need not wait.
func (t *Term) resign(ctx context.Context) error {
	t.stopMaintaining()
	t.writer.close(errClosed())
	select {
	case <-t.writer.finished:
	case <-ctx.Done():
	}
	var err error
	if full := t.journal.disk.checkFloor(); full != nil {
		t.journal.log.WarnContext(ctx, "the disk is full, so that no checkpoint is written; the next start takes longer")
	} else if t.Err() == nil {
		if err = t.checkpoint(ctx); t.Err() != nil {
			err = nil // the term was over already, as the log was told; the next owner writes its own
		}
	}
	_ = t.end(errClosed())
	t.release(ctx)
	t.work.Wait()
	return err
}

// release gives the owner key up, whether or not the term has begun.
func (t *Term) release(ctx context.Context) {
	j := t.journal
	if j.disk.checkFloor() != nil {
		return // the next owner of the directory does not ask whose it was
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	var err error
	if t.lease != 0 {
		_, err = j.store.client.Revoke(ctx, t.lease)
	} else if t.revision != 0 {
		_, err = j.store.client.Txn(ctx).If(t.owns()).Then(clientv3.OpDelete(j.store.keys.owner)).Commit()
	}
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		j.log.WarnContext(ctx, "the ownership of the journal could not be given up; it will expire", slog.Any("error", err))
	}
}
