package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
)

// load replaces the view by what is in etcd: the checkpoint, and the batches of
// the log after it. It creates the log where there is none. The caller holds feed.
func (j *Journal) load(ctx context.Context) error {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		fresh, c, err := j.read(ctx)
		if errors.Is(err, errGap) && attempt < attempts {
			continue // retention went by while the checkpoint was read
		}
		if err != nil {
			return err
		}
		j.view.adopt(fresh)
		j.setOwner(c.owner)
		return nil
	}
}

func (j *Journal) read(ctx context.Context) (*view, control, error) {
	c, err := j.store.control(ctx, 0)
	if err == nil && c.meta == nil {
		if err = j.store.create(ctx, newLogID(), time.Now()); err == nil {
			c, err = j.store.control(ctx, 0)
		}
	}
	if err != nil {
		return nil, c, err
	}
	if len(c.generations) == 0 {
		return nil, c, &damage{j.store.keys.generations, errors.New("it has no generation")}
	}
	records, err := j.readCheckpoint(ctx)
	if err != nil {
		return nil, c, err
	}
	fresh := newView(j.config.RingBytes)
	// The batch of the checkpoint is always kept. It is replayed too, since it tells
	// the time and the size of the log.
	fresh.begin(logID(c.meta.GetLogId()), c.generations, max(c.checkpoint, 1)-1, c.headRevision, records)
	if err := j.catchUp(ctx, fresh); err != nil {
		return nil, c, err
	}
	if head := fresh.tip().head.Seq; head < max(c.head, c.checkpoint) {
		return nil, c, fmt.Errorf("the log is damaged: it ends at batch %d, and there should be %d", head, max(c.head, c.checkpoint))
	}
	if c.first > 0 {
		h, err := j.store.header(ctx, c.first)
		if err != nil {
			return nil, c, err
		}
		fresh.setOldest(c.first-1, h.preceding)
	}
	return fresh, c, nil
}

func (j *Journal) readCheckpoint(ctx context.Context) (map[instance.ID]*Record, error) {
	const page = 500
	records := map[instance.ID]*Record{}
	from, end := j.store.keys.instances, clientv3.GetPrefixRangeEnd(j.store.keys.instances)
	for {
		resp, err := j.store.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), j.store.recent())
		if err != nil {
			return nil, err
		}
		for _, kv := range resp.Kvs {
			record, err := j.store.instanceRecord(kv)
			if err != nil {
				return nil, err
			}
			records[record.Instance.ID] = record
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			return records, nil
		}
	}
}

// instanceRecord decodes a key of the checkpoint.
func (s *store) instanceRecord(kv *mvccpb.KeyValue) (*Record, error) {
	message, err := s.unseal(kv)
	if err != nil {
		return nil, err
	}
	record, err := decodeInstanceRecord(message)
	if err != nil {
		return nil, &damage{string(kv.Key), err}
	}
	return record, nil
}

// catchUp publishes to a view what the log has after its head.
func (j *Journal) catchUp(ctx context.Context, v *view) error {
	p := pager{store: j.store}
	for {
		page, err := p.next(ctx, v.tip().head.Seq)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		batches := make([]published, len(page))
		for i := range page {
			if batches[i], err = j.store.publishable(page[i]); err != nil {
				return err
			}
		}
		if !v.publish(batches...) {
			return fmt.Errorf("the log is damaged: batches %d to %d do not belong to the generation that is recorded for them",
				page[0].seq, page[len(page)-1].seq)
		}
	}
}

// catchUpNow is refresh for callers from outside.
func (j *Journal) catchUpNow(ctx context.Context) error {
	ctx, leave, err := j.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := j.refresh(ctx); err != nil {
		return unreachable(ctx, err)
	}
	return nil
}

// refresh makes the view reflect all that the log had when refresh was called.
// It notices a log that has gone back, or that became another one, and then
// begins anew.
func (j *Journal) refresh(ctx context.Context) error {
	if err := j.feed.lock(ctx); err != nil {
		return err
	}
	defer j.feed.unlock()
	return j.refreshLocked(ctx)
}

func (j *Journal) refreshLocked(ctx context.Context) error {
	known := j.view.tip()
	c, err := j.store.control(ctx, known.head.Seq)
	if err != nil {
		return err
	}
	if !j.continues(known, c) {
		j.log.WarnContext(ctx, "the log in etcd has gone back, or left this process too far behind; reading it anew",
			slog.Uint64("known_seq", known.head.Seq))
		if t := j.currentTerm(); t != nil {
			_ = t.end(errNotOwner(errLost)) // what comes must be of another generation
		}
		return j.load(ctx)
	}
	j.setOwner(c.owner)
	j.view.setGenerations(c.generations)
	if err := j.noteFirst(ctx, c.first); err != nil {
		return err
	}
	err = j.catchUp(ctx, j.view)
	if errors.Is(err, errGap) {
		return j.load(ctx)
	}
	return err
}

// continues reports whether the log still has all that is known of it.
func (j *Journal) continues(known tip, c control) bool {
	id := j.view.logID()
	return c.meta != nil && string(c.meta.GetLogId()) == string(id[:]) &&
		c.generations.cover(known.head) &&
		(known.head.Seq == 0 || c.known == known.revision)
}

// noteFirst notes which batch is the first that is kept.
func (j *Journal) noteFirst(ctx context.Context, first uint64) error {
	if first == 0 || first-1 <= j.view.oldestPosition().Seq {
		return nil
	}
	h, err := j.store.header(ctx, first)
	if errors.Is(err, errGap) {
		return nil // gone already; the next refresh tells
	}
	if err != nil {
		return err
	}
	j.view.setOldest(first-1, h.preceding)
	return nil
}

// header reads the header of one batch, errGap when there is no such batch.
func (s *store) header(ctx context.Context, seq uint64) (header, error) {
	resp, err := s.client.Get(ctx, s.keys.logKey(seq), s.recent())
	if err != nil {
		return header{}, err
	}
	if len(resp.Kvs) == 0 {
		return header{}, errGap
	}
	message, err := s.unseal(resp.Kvs[0])
	if err != nil {
		return header{}, err
	}
	h, _, err := decodeHeader(message)
	if err != nil {
		return header{}, &damage{string(resp.Kvs[0].Key), err}
	}
	return h, nil
}
