package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// FuzzLoad: whatever stands under the keys of a log, reading it neither panics nor hangs.
// It is refused, or it is a log whose end, instances and cursors agree with each other.
func FuzzLoad(f *testing.F) {
	server, err := startEtcd(f.Context(), f.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(server.Close)

	encode := func(m proto.Message) []byte { return appendMessage(nil, m) }
	c := change(id(1), instance.StatePending)
	c.Before = machine(id(1), instance.StateStopped)
	batch := codec.AppendHeader(codec.AppendChange(nil, &c), 7, launch, 99)
	record := appendRecord(nil, &Record{Instance: c.After, Position: Position{Epoch: 7, Seq: 1}})
	meta := encode(&storagev1.Meta{FormatVersion: minWrittenFormat, LogId: make([]byte, logIDSize)})
	epochs := encode(&storagev1.Generations{Generations: []*storagev1.Generation{{Id: 7, FirstSeq: 1}}})
	owner := encode(&storagev1.Owner{Address: "somewhere"})
	f.Add(meta, epochs, owner, encode(&storagev1.Head{Seq: 1}), []byte{}, batch, record)
	f.Add(meta, epochs, []byte{}, encode(&storagev1.Head{Seq: 1}), encode(&storagev1.Checkpoint{Seq: 1}), batch, record)
	f.Add(meta, epochs, owner, encode(&storagev1.Head{Seq: 1 << 60}), encode(&storagev1.Checkpoint{Seq: 1 << 63}), batch, record)
	packed := codec.AppendHeader(codec.AppendCompressed(nil, bytes.Repeat(codec.AppendChange(nil, &c), 1024)), 7, launch, 99)
	f.Add(meta, epochs, owner, encode(&storagev1.Head{Seq: 1}), []byte{}, packed, record)
	f.Add(meta, []byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{})
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{}, []byte{})

	number := 0
	f.Fuzz(func(t *testing.T, meta, epochs, owner, head, checkpoint, batch, record []byte) {
		number++
		config := Config{Prefix: fmt.Sprintf("/fuzz-%d", number)}.withDefaults()
		j := &Journal{config: config, log: config.Logger, refreshMu: newMutex(), campaign: newMutex(), pageReads: instance.NewPlaces(maxPageReads), view: newView(config.RingBytes)}
		j.store = embeddedStore(server, newKeys(config.Prefix))
		defer func() {
			if err := j.store.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		k := j.store.keys
		for key, value := range map[string][]byte{
			k.meta: meta, k.epochs: epochs, k.owner: owner, k.head: head, k.checkpoint: checkpoint,
			k.logKey(1): batch, k.instances + string(id(1)): record,
		} {
			if len(value) == 0 {
				continue
			}
			if _, err := j.store.client.Put(t.Context(), key, string(value)); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.loadLocked(t.Context()); err != nil {
			return
		}
		end := j.Head()
		if got, err := j.Resolve(t.Context(), j.Cursor(end)); err != nil || got != end {
			t.Errorf("the cursor of the end, %v, is resolved to %v, %v", end, got, err)
		}
		snapshot := j.Snapshot()
		if snapshot.Position != end {
			t.Errorf("the snapshot is of %v, the end is %v", snapshot.Position, end)
		}
		for _, r := range snapshot.Records {
			if known, found := j.Get(r.Instance.ID); !found || known.Instance != r.Instance {
				t.Errorf("%q is in the snapshot and not to be found", r.Instance.ID)
			}
		}
	})
}
