package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// loadLocked replaces the view by what is in etcd: the checkpoint, and the batches of
// the log after it. It creates the log where there is none. The caller holds refreshMu.
func (j *Journal) loadLocked(ctx context.Context) error {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		fresh, c, err := j.read(ctx)
		if errors.Is(err, errGap) {
			if attempt < attempts && !j.store.embedded {
				continue // retention went by while the checkpoint was read
			}
			err = &damage{what: "the log", cause: err}
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
	if err == nil && c.meta == nil && j.config.mustExist {
		return nil, c, fmt.Errorf("there is no journal below %s", j.config.Prefix)
	}
	if err == nil && c.meta == nil {
		if err = j.store.create(ctx, newLogID(), time.Now(), j.config.Version); err == nil {
			c, err = j.store.control(ctx, 0)
		}
	}
	if err != nil {
		return nil, c, err
	}
	if len(c.epochs) == 0 {
		return nil, c, damagedValue([]byte(j.store.keys.epochs), errors.New("it has no epoch"))
	}
	if err := c.whole(); err != nil {
		return nil, c, err
	}
	records, unsealed, damaged, err := j.readCheckpoint(ctx, c)
	if err != nil {
		return nil, c, err
	}
	// The batch of the checkpoint is always kept. It is replayed too, since it tells
	// the time and the size of the log. What the checkpoint can no longer tell of an
	// instance may be in the log before it.
	start := max(c.checkpoint, 1) - 1
	if len(damaged) > 0 {
		start = max(c.first, 1) - 1
	}
	fresh := newView(j.config.RingBytes)
	fresh.restore(logID(c.meta.GetLogId()), c.epochs, start, c.headRevision, records)
	for _, id := range unsealed { // as soon as there is another checkpoint
		fresh.unsaved[id] = records[id]
	}
	if err := j.catchUp(ctx, fresh); err != nil {
		return nil, c, errors.Join(append(slices.Collect(maps.Values(damaged)), err)...)
	}
	for id, err := range damaged {
		if _, rebuilt := fresh.unsaved[id]; !rebuilt {
			return nil, c, fmt.Errorf("%w, and history does not reach back to a change of the instance", err)
		}
		j.log.WarnContext(ctx, "what was known of an instance has been rebuilt from history", slog.Any("error", err))
	}
	if c.first > 0 {
		h, err := j.store.header(ctx, c.first)
		if err != nil {
			return nil, c, err
		}
		fresh.setOldest(c.first-1, h)
	}
	return fresh, c, nil
}

// whole returns an error for a log of which batches are missing.
func (c *control) whole() error {
	if c.head < c.checkpoint {
		return &damage{what: "the log", cause: fmt.Errorf("it ends with batch %d, and the checkpoint reaches to batch %d", c.head, c.checkpoint)}
	}
	if c.first > 0 && c.head-c.first+1 != c.kept || c.first == 0 && c.head > 0 {
		return &damage{what: "the log", cause: fmt.Errorf("of batches %d to %d it has %d", c.first, c.head, c.kept)}
	}
	return nil
}

// readCheckpoint reads what the checkpoint knows of each instance, of which that has no
// checksum yet although it should, and of which it cannot be read.
func (j *Journal) readCheckpoint(ctx context.Context, c control) (records map[instance.ID]*Record, unsealed []instance.ID, damaged map[instance.ID]error, err error) {
	const page = 500
	records, damaged = map[instance.ID]*Record{}, map[instance.ID]error{}
	from, end := j.store.keys.instances, clientv3.GetPrefixRangeEnd(j.store.keys.instances)
	for {
		resp, err := j.store.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(c.revision), j.store.recent())
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil, nil, nil, errGap
		}
		if err != nil {
			return nil, nil, nil, err
		}
		for _, kv := range resp.Kvs {
			id := instance.ID(strings.TrimPrefix(string(kv.Key), j.store.keys.instances))
			if record, err := j.store.instanceRecord(kv); err == nil && record.Instance.ID == id {
				records[id] = record
				if j.store.seals() && !sealed(kv) {
					unsealed = append(unsealed, id)
				}
			} else {
				damaged[id] = cmp.Or(err, damagedValue(kv.Key, errors.New("it is of another instance")))
			}
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			break
		}
	}
	if c.ids != nil && sumIDs(maps.Keys(records))+sumIDs(maps.Keys(damaged)) != *c.ids {
		return nil, nil, nil, &damage{what: "the checkpoint", cause: errors.New("it lacks instances, or has others that were removed")}
	}
	return records, unsealed, damaged, nil
}

// instanceRecord decodes a key of the checkpoint.
func (s *store) instanceRecord(kv *mvccpb.KeyValue) (*Record, error) {
	message, err := s.unseal(kv)
	if err != nil {
		return nil, err
	}
	record, err := decodeRecord(message)
	if err != nil {
		return nil, damagedValue(kv.Key, err)
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
			return fmt.Errorf("the log is damaged: batches %d to %d do not belong to the epoch that is recorded for them",
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
	if err := j.refreshMu.lock(ctx); err != nil {
		return err
	}
	defer j.refreshMu.unlock()
	return j.refreshLocked(ctx)
}

func (j *Journal) refreshLocked(ctx context.Context) error {
	return j.refreshFromLocked(ctx, j.view.tip())
}

// refreshFromLocked is refreshLocked, given what was the end of the view a moment ago.
func (j *Journal) refreshFromLocked(ctx context.Context, known tip) error {
	c, err := j.store.control(ctx, known.head.Seq)
	if err != nil {
		return err
	}
	// In a term the writer publishes meanwhile, and then history may be trimmed beyond known.
	stale := func() bool { return j.view.tip().head.Seq != known.head.Seq }
	if !j.continues(known, c) {
		if stale() {
			return j.refreshLocked(ctx)
		}
		j.log.WarnContext(ctx, "the log in etcd has gone back, or left this process too far behind; reading it anew",
			slog.Uint64("known_seq", known.head.Seq))
		if t := j.currentTerm(); t != nil {
			_ = t.end(errNotOwner(errLost)) // what comes must be of another epoch
		}
		return j.loadLocked(ctx)
	}
	j.setOwner(c.owner)
	j.view.setEpochs(c.epochs)
	if err := j.noteFirst(ctx, c.first); err != nil {
		return err
	}
	err = j.catchUp(ctx, j.view)
	if errors.Is(err, errGap) {
		if stale() {
			return j.refreshLocked(ctx)
		}
		return j.loadLocked(ctx)
	}
	return err
}

// continues reports whether the log still has all that is known of it.
func (j *Journal) continues(known tip, c control) bool {
	id := j.view.logID()
	return c.meta != nil && string(c.meta.GetLogId()) == string(id[:]) &&
		c.epochs.cover(known.head) &&
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
	j.view.setOldest(first-1, h)
	return nil
}

// header reads the header of one batch, errGap when there is no such batch. The next
// batch stands in for one that is damaged: the time is a little later then, and the log a
// little longer.
func (s *store) header(ctx context.Context, seq uint64) (codec.Header, error) {
	var unreadable error
	for {
		resp, err := s.client.Get(ctx, s.keys.logKey(seq), s.recent())
		if err != nil {
			return codec.Header{}, err
		}
		if len(resp.Kvs) == 0 {
			return codec.Header{}, cmp.Or(unreadable, errGap)
		}
		h, err := s.readHeader(resp.Kvs[0])
		if err == nil {
			return h, nil
		}
		unreadable = cmp.Or(unreadable, err)
		seq++
	}
}

// readHeader decodes the header of a batch. Errors are of type damage.
func (s *store) readHeader(kv *mvccpb.KeyValue) (codec.Header, error) {
	message, err := s.unseal(kv)
	if err != nil {
		return codec.Header{}, err
	}
	h, _, err := codec.DecodeHeader(message)
	if err != nil {
		return codec.Header{}, damagedValue(kv.Key, err)
	}
	return h, nil
}
