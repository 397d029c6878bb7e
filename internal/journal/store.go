package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/journal/codec"
)

const (
	// maxEmbeddedTxnOps is the most operations of a transaction that the embedded etcd
	// is told to take; maxExternalTxnOps stays below etcd's default of 128.
	maxEmbeddedTxnOps = 1024
	maxExternalTxnOps = 120
	// maxRequestBytes is the most that is put into one transaction. etcd's limit is
	// 1.5 MiB.
	maxRequestBytes = codec.MaxBatch
)

// store is etcd, whether in this process or not.
type store struct {
	client *clientv3.Client
	// members are those that client leads to; nil for the embedded etcd.
	members *members
	keys    keys
	// embedded is true when this process is etcd's only client.
	embedded bool
	// maxOps is the most operations of a transaction.
	maxOps int
	// meta is what was last read of the log's meta, nil before. It is not modified.
	meta atomic.Pointer[storagev1.Meta]
	// metaRevision is the revision at which that was written, 0 when there is none.
	metaRevision atomic.Int64
}

// recent makes a read see all that was ever acknowledged, to whomever.
func (s *store) recent() clientv3.OpOption {
	if s.embedded { // the one member has all of it
		return clientv3.WithSerializable()
	}
	return func(*clientv3.Op) {}
}

// control is what the few keys beside the log say, all at one revision.
type control struct {
	revision int64
	meta     *storagev1.Meta // nil when there is no log yet
	epochs   epochs
	// owner is nil if the log has no owner; ownerRevision is the revision at which it became
	// the owner.
	owner         *storagev1.Owner
	ownerRevision int64
	checkpoint    uint64
	// ids is the sum of the ids in the checkpoint, nil when it does not say.
	ids *idSum
	// first is the first batch that is kept, 0 when there is none, and kept is how many
	// there are.
	first, kept uint64
	// head is the last batch, and headRevision that at which it was written.
	head         uint64
	headRevision int64
	// known is the revision of the batch that was asked for, 0 without such a batch.
	known int64
}

// control reads the control keys, and looks for a batch that is known.
func (s *store) control(ctx context.Context, known uint64) (control, error) {
	resp, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.keys.meta),
		clientv3.OpGet(s.keys.epochs),
		clientv3.OpGet(s.keys.owner),
		clientv3.OpGet(s.keys.checkpoint),
		clientv3.OpGet(s.keys.head),
		clientv3.OpGet(s.keys.log, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()),
		clientv3.OpGet(s.keys.logKey(known), clientv3.WithKeysOnly()),
	).Commit()
	if err != nil {
		return control{}, err
	}
	c := control{revision: resp.Header.GetRevision()}
	if kv := only(resp, 0); kv == nil {
		s.metaRevision.Store(0)
	} else if c.meta, err = s.readMeta(kv); err != nil {
		return control{}, err
	}
	var list storagev1.Generations
	var owner storagev1.Owner
	var checkpoint storagev1.Checkpoint
	var head storagev1.Head
	for i, m := range []proto.Message{1: &list, 2: &owner, 3: &checkpoint, 4: &head} {
		kv := only(resp, i)
		if m == nil || kv == nil {
			continue
		}
		if err := s.get(kv, m); err != nil {
			return control{}, err
		}
		switch i {
		case 2:
			c.owner, c.ownerRevision = &owner, kv.CreateRevision
		case 4:
			c.headRevision = kv.ModRevision
		}
	}
	c.checkpoint, c.ids, c.head = checkpoint.GetSeq(), (*idSum)(checkpoint.IdsSum), head.GetSeq()
	for _, g := range list.GetGenerations() {
		c.epochs = append(c.epochs, epoch{g.GetId(), g.GetFirstSeq(), codec.Time(g.GetStartedAtNs())})
	}
	c.kept = uint64(resp.Responses[5].GetResponseRange().GetCount())
	if kv := only(resp, 5); kv != nil {
		if c.first, err = s.keys.seq(kv.Key); err != nil {
			return control{}, err
		}
	}
	if kv := only(resp, 6); kv != nil {
		c.known = kv.ModRevision
	}
	return c, nil
}

// only returns the key that the i-th operation of a transaction read, or nil.
func only(resp *clientv3.TxnResponse, i int) *mvccpb.KeyValue {
	if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}

// readMeta decodes the value that says in which format all others are, and keeps it.
func (s *store) readMeta(kv *mvccpb.KeyValue) (*storagev1.Meta, error) {
	damaged := func(why string) error { return damagedValue(kv.Key, errors.New(why)) }
	message, err := s.verify(kv)
	if err != nil {
		return nil, err
	}
	var meta storagev1.Meta
	if err := decode(kv, message, &meta); err != nil {
		return nil, err
	}
	sealed := sealed(kv)
	switch v := meta.GetFormatVersion(); {
	case v == 0, sealed != (v >= minSealedFormat):
		return nil, damaged(fmt.Sprintf("it says format %d", v))
	case v > formatVersion:
		return nil, errNewer("the log at "+strings.TrimSuffix(s.keys.prefix, "/")+" in etcd", int(v), meta.GetProgramVersion())
	case sealed && meta.GetChecksumsFromRevision() <= 0, len(meta.GetLogId()) != logIDSize:
		return nil, damaged("it does not say which log it is")
	}
	s.meta.Store(&meta)
	s.metaRevision.Store(kv.ModRevision)
	return &meta, nil
}

// newMeta is that of a log of which all values are sealed.
func newMeta(id logID, now time.Time) *storagev1.Meta {
	return &storagev1.Meta{FormatVersion: formatVersion, LogId: id[:], CreatedAtNs: codec.Nanoseconds(now), ChecksumsFromRevision: 1}
}

// create writes the keys of a new log, unless another process does so first.
func (s *store) create(ctx context.Context, id logID, now time.Time, program string) error {
	meta := newMeta(id, now)
	meta.ProgramVersion = program
	s.meta.Store(meta)
	list := epochs{}.withNew(0, now)
	_, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(s.keys.meta), "=", 0)).
		Then(s.put(s.keys.meta, meta), s.putEpochs(list), s.putHead(0)).
		Commit()
	return err
}

func (s *store) putEpochs(list epochs) clientv3.Op {
	m := &storagev1.Generations{}
	for _, g := range list {
		m.Generations = append(m.Generations, &storagev1.Generation{
			Id: g.id, FirstSeq: g.first, StartedAtNs: codec.Nanoseconds(g.startedAt),
		})
	}
	return s.put(s.keys.epochs, m)
}

func (s *store) putHead(seq uint64) clientv3.Op {
	return s.put(s.keys.head, &storagev1.Head{Seq: seq})
}

// putBytes is a put that shares the value, which may be modified once the transaction
// has returned: by then it was copied, whatever came of it.
func putBytes(key string, value []byte, options ...clientv3.OpOption) clientv3.Op {
	op := clientv3.OpPut(key, "", options...)
	op.WithValueBytes(value)
	return op
}

// refused reports whether etcd has looked at a request and will never carry it
// out. After any other error it may have.
func refused(err error) bool {
	for _, never := range []error{
		rpctypes.ErrRequestTooLarge, rpctypes.ErrTooManyOps, rpctypes.ErrDuplicateKey, rpctypes.ErrEmptyKey,
	} {
		if errors.Is(err, never) {
			return true
		}
	}
	return false
}

// noSpace reports whether etcd's quota is used up.
func noSpace(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }
