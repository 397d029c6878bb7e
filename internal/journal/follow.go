package journal

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// followInterval is how often a follower looks at the log without being woken.
	followInterval = 5 * time.Second
)

// followOwner keeps the view of a process that shares an external etcd up to date
// while another process is the owner. It ends with ctx.
func (j *Journal) followOwner(ctx context.Context) {
	pause, failing := minRetryPause, false
	followed := func() {
		j.noteContact()
		if failing {
			failing = false
			j.log.InfoContext(ctx, "the log in etcd is followed again")
		}
	}
	for ctx.Err() == nil {
		if t := j.currentTerm(); t != nil {
			select { // the view of the owner follows from its own writes
			case <-t.Done():
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := j.followUntilLost(ctx, followed)
		if ctx.Err() != nil || err == nil {
			continue
		}
		if !failing {
			failing = true
			j.log.WarnContext(ctx, "the log in etcd cannot be followed; trying again until it can", slog.Any("error", err))
		}
		if time.Since(began) > maxRetryPause {
			pause = minRetryPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// noteContact notes that etcd has answered.
func (j *Journal) noteContact() { j.lastContact.Store(new(time.Now())) }

// Reachable returns why what this process knows may be out of date: an error of
// [instance.ReasonJournalUnavailable] when an external etcd has not answered for as long as an owner may
// have been silent. The embedded one is always there.
func (j *Journal) Reachable() error {
	if j.store.embedded {
		return nil
	}
	if silent := time.Since(*j.lastContact.Load()); silent > j.config.OwnerTTL {
		return errSilent(silent)
	}
	return nil
}

func errSilent(silent time.Duration) error {
	return errUnavailable(fmt.Sprintf("etcd has not responded for %s", silent.Round(100*time.Millisecond)), nil)
}

// currentTerm returns the term that lasts, or nil.
func (j *Journal) currentTerm() *Term {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.term != nil && j.term.Err() == nil {
		return j.term
	}
	return nil
}

// followUntilLost refreshes the view each time etcd tells that one of the control
// keys changed, until this process becomes the owner, or etcd fails. The watch is
// only what wakes it: however many batches were written meanwhile, they are read
// in pages. It calls followed each time that it has looked.
func (j *Journal) followUntilLost(ctx context.Context, followed func()) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	wake := j.store.client.Watch(clientv3.WithRequireLeader(watching), j.store.keys.control, clientv3.WithPrefix())
	regularly := time.NewTicker(followInterval)
	defer regularly.Stop()
	for j.currentTerm() == nil {
		refreshing, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := j.refresh(refreshing)
		cancel()
		if err != nil {
			return err
		}
		followed()
		select {
		case resp, ok := <-wake:
			if !ok {
				return ctx.Err()
			}
			if err := resp.Err(); err != nil {
				return err
			}
			drain(wake)
		case <-regularly.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// drain takes what has arrived already: one look at the log answers all of it.
func drain(wake clientv3.WatchChan) {
	for {
		select {
		case _, ok := <-wake:
			if !ok {
				return
			}
		default:
			return
		}
	}
}
