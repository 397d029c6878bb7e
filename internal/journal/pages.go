package journal

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/journal/codec"
)

const (
	// maxPageBytes is about the size of a page of the log: what a reader that has fallen
	// out of the ring holds in memory.
	maxPageBytes = 64 << 10
	// firstPage and largestPage are numbers of batches in a page.
	firstPage, largestPage = 8, 256
	// maxPageReads is how many pages are read from etcd at a time for all readers, so
	// that their number does not multiply what a page may take while it is read. One
	// caller gets half of them.
	maxPageReads = 4
)

// errGap means that the batches after a position are not in the log: retention
// has passed it.
var errGap = errors.New("the batches that follow are missing")

// rawBatch is a batch as it is in etcd. It is decoded only when its turn comes, so that damage
// hides nothing before it.
type rawBatch struct {
	seq uint64
	kv  *mvccpb.KeyValue
}

// pager reads the log in pages that are limited in bytes. etcd limits a range by
// number only, so a pager learns from each page how many batches make the next.
type pager struct {
	store *store
	count int64
}

// next returns batches that follow seq without a gap: none at the end of the log,
// errGap when the next one is gone.
func (p *pager) next(ctx context.Context, seq uint64) ([]rawBatch, error) {
	if p.count == 0 {
		p.count = firstPage
	}
	k := &p.store.keys
	first := k.logKey(seq + 1)
	// However low its limit, etcd visits all keys of a range to count them, so that a
	// range up to the end of the log takes the longer the more is left of it.
	resp, err := p.store.client.Get(ctx, first, clientv3.WithRange(k.logKey(seq+1+uint64(p.count))), p.store.recent())
	if err == nil && len(resp.Kvs) == 0 {
		// It is the end of the log, unless retention has passed all of the range.
		resp, err = p.store.client.Get(ctx, first, clientv3.WithRange(clientv3.GetPrefixRangeEnd(k.log)), clientv3.WithLimit(1), p.store.recent())
	}
	if err != nil {
		return nil, err
	}
	page := make([]rawBatch, 0, len(resp.Kvs))
	size := 0
	for i, kv := range resp.Kvs {
		n, err := k.seq(kv.Key)
		if err != nil {
			return nil, err
		}
		if n != seq+1+uint64(i) {
			break
		}
		if size += len(kv.Value); size > maxPageBytes && i > 0 {
			break // the rest is read again when it is wanted
		}
		page = append(page, rawBatch{n, kv})
	}
	if len(page) == 0 && len(resp.Kvs) > 0 {
		return nil, errGap
	}
	if size > 0 {
		average := size/len(page) + 1
		p.count = min(max(int64(maxPageBytes/average), 1), p.count*4, largestPage)
	}
	return page, nil
}

// batch decodes a stored batch. Errors are of type damage.
func (s *store) batch(x rawBatch) (*Batch, codec.Header, error) {
	message, err := s.unseal(x.kv)
	if err != nil {
		return nil, codec.Header{}, err
	}
	b, h, err := decodeBatch(x.seq, message)
	if err != nil {
		return nil, codec.Header{}, damagedValue(x.kv.Key, err)
	}
	return b, h, nil
}

// publishable decodes a stored batch, for publishing.
func (s *store) publishable(x rawBatch) (published, error) {
	b, h, err := s.batch(x)
	if err != nil {
		return published{}, err
	}
	return published{batch: b, revision: x.kv.ModRevision, bytes: h.Preceding + uint64(len(x.kv.Value))}, nil
}
