package journal

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// format1 returns bytes that a program of format 1 wrote: "batch", the first of a log, and
// "record", that of the instance in its second change.
func format1(t testing.TB, name string) []byte {
	t.Helper()
	value, err := os.ReadFile(filepath.Join("testdata", "format-1", name))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// changesOfFormat1 are the changes of that batch: an instance is added and started, and another
// one is removed.
func changesOfFormat1() []instance.Change {
	added := change(id(1), instance.StateStopped)
	added.Type = instance.ChangeAdded
	started := change(id(1), instance.StatePending)
	started.Type, started.Before = instance.ChangeState, added.After
	started.After.StateReason, started.After.StateTransitionReason = nil, ""
	started.After.LaunchTime = launch.Add(time.Hour)
	removed := change(id(2), instance.StateTerminated)
	removed.Type, removed.Before, removed.After = instance.ChangeRemoved, removed.After, nil
	return []instance.Change{added, started, removed}
}

// writeFormat1 makes an unused journal one that a program of format 1 left behind.
func writeFormat1(t *testing.T, j *Journal) {
	t.Helper()
	k := j.store.keys
	logID := j.view.logID()
	_, err := j.store.client.Txn(t.Context()).Then(
		putBytes(k.meta, appendMessage(nil, &storagev1.Meta{FormatVersion: 1, LogId: logID[:]})),
		putBytes(k.epochs, appendMessage(nil, &storagev1.Generations{Generations: []*storagev1.Generation{{Id: 7}}})),
		putBytes(k.head, appendMessage(nil, &storagev1.Head{Seq: 1})),
		putBytes(k.checkpoint, appendMessage(nil, &storagev1.Checkpoint{Seq: 1})),
		putBytes(k.logKey(1), format1(t, "batch")),
		putBytes(k.instances+string(id(1)), format1(t, "record")),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
}

// wantFormat fails the test unless the log and the directory are of a format.
func wantFormat(t *testing.T, j *Journal, want int) {
	t.Helper()
	c, err := j.store.control(t.Context(), 0)
	if err != nil || int(c.meta.GetFormatVersion()) != want {
		t.Errorf("etcd says format %d, %v; want %d", c.meta.GetFormatVersion(), err, want)
	}
	if text, err := os.ReadFile(filepath.Join(j.config.DataDir, "format")); string(text) != fmt.Sprintf(formatLine, want) {
		t.Errorf("the directory says %q, %v; want format %d", text, err, want)
	}
}

func TestALogOfFormat1IsReadAndGoesOnInThePresentOne(t *testing.T) {
	config := testConfig(t)
	before := openJournal(t, config)
	writeFormat1(t, before)
	closeJournal(t, before)
	format := filepath.Join(config.DataDir, "format")
	if err := os.WriteFile(format, fmt.Appendf(nil, formatLine, 1), 0o600); err != nil {
		t.Fatal(err)
	}

	j, term := own(t, config)
	want := changesOfFormat1()
	record, found := j.Get(id(1))
	if diff := cmp.Diff(want[1].After, record.Instance); !found || diff != "" {
		t.Errorf("what is known is not what the checkpoint says (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1].Before, record.Previous); diff != "" {
		t.Errorf("what was before is not what the checkpoint says (-want +got):\n%s", diff)
	}
	set(t, term, id(1), instance.StateRunning)
	then := change(id(1), instance.StateRunning)
	then.Type, then.Before = instance.ChangeState, want[1].After
	want = append(want, then)
	page, err := j.History(t.Context(), "", nil, j.Oldest(), 10)
	if err != nil {
		t.Fatal(err)
	}
	var got []instance.Change
	for _, e := range page.Entries {
		got = append(got, *e.Change)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the history is another (-want +got):\n%s", diff)
	}

	wantFormat(t, j, minWrittenFormat)
}

// keptKeys returns the operations that put into etcd what a program of a format had written
// when it was killed: a few small batches, a compressed one of ten changes with a client token,
// a checkpoint, and a batch after it.
func keptKeys(t testing.TB, format int) (ops []clientv3.Op) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("format-%d", format), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var key, encoded string
		if _, err := fmt.Sscan(line, &key, &encoded); err != nil {
			t.Fatal(err)
		}
		value, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, putBytes(key, value))
	}
	return ops
}

// dataDirOf returns a data directory that a program of a format left behind.
func dataDirOf(t testing.TB, format int) Config {
	t.Helper()
	config := testConfig(t)
	config.TokenLifetime = 1000 * 24 * time.Hour // those in testdata are never too old
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.store.client.Txn(t.Context()).Then(keptKeys(t, format)...).Commit(); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	if err := os.WriteFile(filepath.Join(config.DataDir, "format"), fmt.Appendf(nil, formatLine, format), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// wantKept fails the test unless the journal has what [keptKeys] put there.
func wantKept(t *testing.T, j *Journal, term *Term) {
	t.Helper()
	var want []instance.ID
	for n := 1; n <= 12; n++ {
		if n != 2 {
			want = append(want, id(n))
		}
	}
	snapshot := j.Snapshot()
	var got []instance.ID
	for _, r := range snapshot.Records {
		got = append(got, r.Instance.ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the instances are others (-want +got):\n%s", diff)
	}
	page, err := j.History(t.Context(), "", nil, j.Oldest(), 100)
	if err != nil || len(page.Entries) < 15 {
		t.Fatalf("history has %d events, %v", len(page.Entries), err)
	}
	last := page.Entries[14].Change
	if diff := cmp.Diff(machine(id(3), instance.StatePending), last.After); diff != "" || last.Before.State != instance.StateStopped {
		t.Errorf("its last change is another (-want +got):\n%s", diff)
	}
	kept := fullToken()
	kept.Principal = "" // which was not recorded then
	token, found, err := term.Token(t.Context(), kept.Key)
	if diff := cmp.Diff(*kept, token); !found || err != nil || diff != "" {
		t.Errorf("the client token: %t, %v (-want +got):\n%s", found, err, diff)
	}
}

func TestALogOfFormat2IsReadAndRaisedToTheOldestFormatThatIsWritten(t *testing.T) {
	config := dataDirOf(t, 2)
	j, term := own(t, config)
	wantKept(t, j, term)
	wantFormat(t, j, minWrittenFormat)
	set(t, term, id(4), instance.StatePending)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)

	j, term = own(t, config)
	wantFormat(t, j, minWrittenFormat)
	wantKept(t, j, term)
	if record, _ := j.Get(id(4)); record.Instance.State != instance.StatePending {
		t.Errorf("the change after the upgrade is lost: %v", record.Instance.State)
	}
}

func TestALogOfFormat3StaysOneThatTheVersionBeforeCanRead(t *testing.T) {
	config := dataDirOf(t, 3)
	j, term := own(t, config)
	wantKept(t, j, term)
	_, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(change(id(4), instance.StatePending))
		tx.PutToken(Token{Key: "new"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kv := range stores(t, j) {
		if sealed(kv) {
			t.Errorf("%s is sealed", kv.Key)
		}
	}
	wantFormat(t, j, 3)
	closeJournal(t, j)

	j, term = own(t, config)
	wantFormat(t, j, 3)
	wantKept(t, j, term)
}

func TestALogOfFormat4ThatWasWrittenBeforeTheCodecIsRead(t *testing.T) {
	config := testConfig(t)
	config.TokenLifetime = 1000 * 24 * time.Hour // those in testdata are never too old
	before := openJournal(t, config)
	if _, err := before.store.client.Txn(t.Context()).Then(keptKeys(t, 4)...).Commit(); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, before)

	j, term := own(t, config)
	wantFormat(t, j, 4)
	kept := fullToken()
	token, found, err := term.Token(t.Context(), kept.Key)
	if diff := cmp.Diff(*kept, token); !found || err != nil || diff != "" {
		t.Errorf("the client token: %t, %v (-want +got):\n%s", found, err, diff)
	}
	page, err := j.History(t.Context(), "", nil, j.Oldest(), 100)
	if err != nil || len(page.Entries) != 15 {
		t.Fatalf("history has %d events, %v, want 15", len(page.Entries), err)
	}
	last := page.Entries[14].Change
	if diff := cmp.Diff(machine(id(3), instance.StatePending), last.After); diff != "" || last.Before.State != instance.StateStopped {
		t.Errorf("its last change is different (-want +got):\n%s", diff)
	}
	if n := len(j.Snapshot().Records); n != 11 {
		t.Errorf("%d instances, want 11", n)
	}
	set(t, term, id(3), instance.StateRunning)
}

func TestAFinalizedJournalIsReadAndWrittenWithChecksums(t *testing.T) {
	config := dataDirOf(t, 3)
	config.Version = "v1.2.3"
	was, is, err := Finalize(t.Context(), config)
	if err != nil || was != 3 || is != 4 {
		t.Fatalf("from %d to %d, %v", was, is, err)
	}
	text, err := os.ReadFile(filepath.Join(config.DataDir, "format"))
	if want := "instanced journal 4\nwritten by instanced v1.2.3\n"; err != nil || string(text) != want {
		t.Errorf("the directory says %q, %v; want %q", text, err, want)
	}
	j, term := own(t, config)
	if v := j.store.meta.Load().GetProgramVersion(); v != "v1.2.3" {
		t.Errorf("the log says that %q gave it its format", v)
	}
	wantKept(t, j, term)
	set(t, term, id(4), instance.StatePending)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Batches and tokens stay as they were written; instances do not wait for a change.
	for _, kv := range stores(t, j) {
		key := strings.TrimPrefix(string(kv.Key), j.store.keys.prefix)
		older := strings.HasPrefix(key, "log/") && key < "log/00000000000000000006" || strings.HasPrefix(key, "tokens/")
		if sealed(kv) == older {
			t.Errorf("%s is sealed: %t", key, sealed(kv))
		}
	}
	closeJournal(t, j)

	j, term = own(t, config)
	wantKept(t, j, term)
	if record, _ := j.Get(id(4)); record.Instance.State != instance.StatePending {
		t.Errorf("the last change is lost: %v", record.Instance.State)
	}
	closeJournal(t, j)
	if was, is, err := Finalize(t.Context(), config); err != nil || was != 4 || is != 4 {
		t.Errorf("once more: from %d to %d, %v", was, is, err)
	}
}

// What was written without checksums before is told from what should have one.
func TestAValueThatLostItsChecksumInAFinalizedJournalIsNoticed(t *testing.T) {
	config := dataDirOf(t, 3)
	if _, _, err := Finalize(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	j, term := own(t, config)
	set(t, term, id(4), instance.StatePending)
	for _, kv := range stores(t, j) {
		if !sealed(kv) {
			continue
		}
		bare := &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value[sealSize:], ModRevision: kv.ModRevision}
		_, err := j.store.unseal(bare)
		if string(kv.Key) == j.store.keys.meta {
			_, err = j.store.readMeta(bare)
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s without its checksum: %v", kv.Key, err)
		}
	}
}

func TestNoJournalIsFinalizedThatIsInUseOrDoesNotExist(t *testing.T) {
	config := testConfig(t)
	_, _, err := Finalize(t.Context(), config)
	wantSentence(t, nil, err, "there is no journal in "+config.DataDir)
	j := openJournal(t, config)
	_, _, err = Finalize(t.Context(), config)
	wantSentence(t, nil, err, "in use by process")
	closeJournal(t, j)
}

func TestAnExternalJournalIsFinalizedWhileItHasNoOwner(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	config := c.config("a")
	_, _, err := Finalize(t.Context(), config)
	wantSentence(t, nil, err, "there is no journal below /instanced")
	j := openJournal(t, config)
	if _, err := j.store.client.Txn(t.Context()).Then(keptKeys(t, 3)...).Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.store.client.Txn(t.Context()).Then(clientv3.OpDelete(j.store.keys.owner)).Commit(); err != nil {
		t.Fatal(err)
	}
	follower := openJournal(t, c.config("follower"))
	campaign(t, j)
	_, _, err = Finalize(t.Context(), config)
	wantSentence(t, nil, err, "in use by the process at a", "stop all processes")
	closeJournal(t, j)

	if was, is, err := Finalize(t.Context(), config); err != nil || was != 3 || is != 4 {
		t.Fatalf("from %d to %d, %v", was, is, err)
	}
	// One that was there all the time knows both formats.
	p := set(t, campaign(t, follower), id(4), instance.StatePending)
	other := openJournal(t, config)
	if record, _ := other.Get(id(4)); record.Position != p {
		t.Errorf("it is known as of %v, want %v", record.Position, p)
	}
	for _, kv := range stores(t, other) {
		if kv.ModRevision >= other.store.meta.Load().GetChecksumsFromRevision() && !sealed(kv) {
			t.Errorf("%s is not sealed", kv.Key)
		}
	}
}

// stores returns all that is in etcd.
func stores(t testing.TB, j *Journal) []*mvccpb.KeyValue {
	t.Helper()
	resp, err := j.store.client.Get(t.Context(), j.store.keys.prefix, clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) == 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	return resp.Kvs
}

// A process of format 1 that shares an etcd looks at the format only when it starts: what
// it finds later must stop it, too.
func TestADecoderOfFormat1FindsNoInstanceInADelta(t *testing.T) {
	c := changesOfFormat1()[1]
	var batch storagev1.LogRecord
	if err := proto.Unmarshal(codec.AppendHeader(codec.AppendChange(nil, &c), 7, launch, 0), &batch); err != nil {
		t.Fatal(err)
	}
	if m := batch.GetChanges()[0]; m.GetBefore() != nil || m.GetAfter() != nil {
		t.Errorf("it finds %v and %v", m.GetBefore(), m.GetAfter())
	}
	var record storagev1.InstanceRecord
	if err := proto.Unmarshal(appendRecord(nil, &Record{Previous: c.Before, Instance: c.After}), &record); err != nil {
		t.Fatal(err)
	}
	if record.GetInstance() != nil {
		t.Errorf("it finds %v", record.GetInstance())
	}
}

func TestADeltaIsStoredWhicheverFieldsChange(t *testing.T) {
	fields := reflect.TypeFor[instance.Instance]()
	for n := range fields.NumField() {
		for name, alter := range map[string]func(before, after reflect.Value){
			"is set":     func(before, _ reflect.Value) { before.SetZero() },
			"is cleared": func(_, after reflect.Value) { after.SetZero() },
			"changes":    func(_, after reflect.Value) { fill(t, after) },
		} {
			t.Run(fields.Field(n).Name+" "+name, func(t *testing.T) { storeStep(t, n, alter, false) })
			t.Run(fields.Field(n).Name+" in short form "+name, func(t *testing.T) { storeStep(t, n, alter, true) })
		}
	}
}

// storeStep has a field of an instance altered, and stores that.
func storeStep(t *testing.T, field int, alter func(before, after reflect.Value), short bool) {
	t.Helper()
	before := filled[instance.Instance](t)
	if short {
		before = *inShortForm(&before)
	}
	after := *before.Clone()
	alter(reflect.ValueOf(&before).Elem().Field(field), reflect.ValueOf(&after).Elem().Field(field))
	want := instance.Change{Type: instance.ChangeState, Before: &before, After: &after}
	value := codec.AppendHeader(codec.AppendChange(nil, &want), 7, launch, 0)
	b, _, err := decodeBatch(1, value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *b.Events[0].Change); diff != "" {
		t.Errorf("the change came back otherwise (-want +got):\n%s", diff)
	}
	record := Record{Instance: &after, Previous: &before}
	got, err := decodeRecord(appendRecord(nil, &record))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&record, got, cmpopts.IgnoreUnexported(Record{})); diff != "" {
		t.Errorf("the record came back otherwise (-want +got):\n%s", diff)
	}
}

// inTheDefaultVPC returns an instance as EC2 gives it there: with an image, and the host
// names of its addresses.
func inTheDefaultVPC(i *instance.Instance) *instance.Instance {
	i = i.Clone()
	i.ImageID = "ami-0abcdef1234567890"
	i.PrivateDNSName, i.PublicDNSName = i.UsualPrivateDNSName(), i.UsualPublicDNSName()
	return i
}

func TestAnImageAndHostNamesTakeFewBytesOfTheLog(t *testing.T) {
	stopped, running := machine(id(1), instance.StateStopped), machine(id(1), instance.StateRunning)
	stopped.PublicIPAddress = ""
	for name, c := range map[string]instance.Change{
		"a start": {Type: instance.ChangeState, Before: stopped, After: running},
		"a stop":  {Type: instance.ChangeState, Before: running, After: stopped},
		"neither": {Type: instance.ChangeState, Before: running, After: machine(id(1), instance.StatePending)},
	} {
		without := len(codec.AppendChange(nil, &c))
		c.Before, c.After = inTheDefaultVPC(c.Before), inTheDefaultVPC(c.After)
		with := len(codec.AppendChange(nil, &c))
		t.Logf("%s: %d bytes, and %d", name, without, with)
		if with > without+20 {
			t.Errorf("%s takes %d bytes with them and %d without", name, with, without)
		}
	}
	added := instance.Change{After: inTheDefaultVPC(running)}
	b := make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(10, func() { b = codec.AppendChange(b[:0], &added) }); n > 0 {
		t.Errorf("encoding them takes %v allocations", n)
	}
}

func TestIDsOfImagesAreStoredWhateverTheirForm(t *testing.T) {
	for _, image := range []string{"", "ami-0abcdef1234567890", "ami-0ABCDEF1234567890", "ami-12c6146b", "ami-00000000000000000", "ami-1abcdef1234567890", "ami-0abcdef123456789g", "x"} {
		r := Record{Instance: machine(id(1), instance.StateRunning)}
		r.Instance.ImageID = image
		got, err := decodeRecord(appendRecord(nil, &r))
		if err != nil || got.Instance.ImageID != image {
			t.Errorf("%q came back as %q, %v", image, got.Instance.ImageID, err)
		}
	}
}

func TestADeltaHasEqualFieldsOnce(t *testing.T) {
	c := changesOfFormat1()[1]
	alone := instance.Change{Type: c.Type, After: c.After, Cause: c.Cause, Source: c.Source, OccurredAt: c.OccurredAt, ObservedAt: c.ObservedAt}
	whole, limit := len(codec.AppendChange(nil, &c)), len(codec.AppendChange(nil, &alone))
	before := codec.AppendChange(nil, &instance.Change{Before: &instance.Instance{
		State: c.Before.State, StateReason: c.Before.StateReason, StateTransitionReason: c.Before.StateTransitionReason, LaunchTime: c.Before.LaunchTime,
	}})
	if limit += len(before) + 10; whole > limit { // the set of fields, and lengths
		t.Errorf("the change takes %d bytes, want at most %d", whole, limit)
	}
}
