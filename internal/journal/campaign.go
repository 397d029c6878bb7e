package journal

import (
	"context"
	"errors"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/journal/codec"
)

// Campaign makes this process the owner of the log and begins a new epoch.
// With an external etcd it waits until the present owner gives up or is silent
// for its time to live, and outlasts failures of etcd; the embedded one belongs
// to this process alone. The view is complete up to the end of the log when it
// returns. While a term of this journal lasts, Campaign waits for its end; after
// [Journal.Drain] it waits until ctx ends or the journal is closed.
// It returns the error of ctx, or [instance.ReasonJournalUnavailable] when the journal is closed.
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

// tryCampaign takes the log over once it has no owner. The error is errTaken when
// somebody else did first.
func (j *Journal) tryCampaign(ctx context.Context) (*Term, error) {
	t := &Term{
		journal:     j,
		roomNeeded:  make(chan struct{}, 1),
		unblocked:   make(chan struct{}, 1),
		maintenance: newMutex(),
	}
	t.limit.Store(int64(j.budget))
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.maintaining, t.stopMaintaining = context.WithCancel(t.ctx)
	t.writer, t.checkpointer = newWriter(t), newCheckpointer(t)
	err := t.acquire(ctx)
	if err == nil {
		err = t.startEpoch(ctx)
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
	j.metrics.terms.Inc()
	return nil
}

// acquire waits until the log has no owner, and creates the owner key.
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

// claim creates the owner key, unless another process was faster. If an external etcd has used
// up its quota, claim deletes what has expired, and history, while the log has no owner, so that
// the operator can make room.
func (t *Term) claim(ctx context.Context) (err error) {
	if err = t.tryClaim(ctx); !noSpace(err) {
		return err
	}
	saved, err := t.journal.store.checkpointed(ctx)
	if err != nil {
		return err
	}
	t.checkpointer.saved.Store(&checkpoint{logPoint: saved})
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

// startEpoch brings the view to the end of the log, which is final now that no other process can
// write, and appends an epoch.
func (t *Term) startEpoch(ctx context.Context) (err error) {
	j := t.journal
	if err := j.refreshMu.lock(ctx); err != nil {
		return err
	}
	defer j.refreshMu.unlock()
	if err := j.refreshLocked(ctx); err != nil {
		return err
	}
	if err := t.checkpointer.load(ctx); err != nil {
		return err
	}
	tip := j.view.tip()
	list := j.view.listEpochs().since(j.view.oldestPosition().Seq).withNew(tip.head.Seq+1, time.Now())
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
