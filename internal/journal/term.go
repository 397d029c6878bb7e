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

	"github.com/instanced/instanced/internal/instance"
)

// Term is a period in which this process owns the log and no other process can write to it.
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
	renewed      atomic.Pointer[renewal]
	renewing     instance.Heartbeat
	checkpointer *checkpointer
	// roomNeeded asks for room to be made in etcd. unblocked is signalled when that was done, or
	// a checkpoint written.
	roomNeeded, unblocked chan struct{}
	// limit is how many bytes of the embedded etcd's database may be in use before the
	// writer waits.
	limit atomic.Int64
	// maintenance is held by the maintenance task that runs. It also guards compactable, a
	// revision before which nothing is needed.
	maintenance mutex
	compactable int64

	mu  sync.Mutex
	err *instance.Error // guarded by mu
}

// owns is the comparison that only the owner's transactions pass; before the claim, only
// transactions made while the log has no owner.
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
		t.journal.log.WarnContext(ctx, "no checkpoint is written because the disk is full; the next start takes longer")
	} else if t.Err() == nil {
		if err = t.checkpointer.write(ctx); t.Err() != nil {
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
