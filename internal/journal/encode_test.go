package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// fill sets every field that can be reached to something that is not its zero
// value, so that a field which somebody adds and forgets here fails the tests.
func fill(t testing.TB, v reflect.Value) {
	t.Helper()
	switch at := v.Addr().Interface().(type) {
	case *time.Time:
		*at = time.Unix(rand.Int64N(1<<31), rand.Int64N(1e9)).UTC()
		return
	case *instance.State:
		*at = instance.States()[rand.IntN(6)]
		return
	case *instance.ChangeType:
		*at = instance.ChangeState
		return
	case *instance.Source:
		*at = instance.SourceReconcile
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(string(rune('a' + rand.IntN(26))))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32:
		v.SetInt(1 + rand.Int64N(1<<20))
	case reflect.Int64:
		v.SetInt(1 + rand.Int64N(1<<40))
	case reflect.Uint64:
		v.SetUint(1 + rand.Uint64N(1<<40))
	case reflect.Uint32:
		v.SetUint(uint64(1 + rand.Uint32N(1<<20)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"Name": "a", "team": "", "": "b"}))
	case reflect.Struct:
		for kind, field := range v.Fields() {
			if kind.IsExported() {
				fill(t, field)
			}
		}
	default:
		t.Fatalf("no value for a %s", v.Type())
	}
}

func filled[T any](t testing.TB) (value T) {
	t.Helper()
	fill(t, reflect.ValueOf(&value).Elem())
	return value
}

func TestEveryFieldOfAChangeIsStored(t *testing.T) {
	want := filled[instance.Change](t)
	value := codec.AppendHeader(codec.AppendChange(nil, &want), 7, launch, 99)
	b, h, err := decodeBatch(3, value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *b.Events[0].Change); diff != "" {
		t.Errorf("the change came back otherwise (-want +got):\n%s", diff)
	}
	if want := (codec.Header{Epoch: 7, RecordedAt: launch, Preceding: 99}); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	if h2, _, err := codec.DecodeHeader(value); err != nil || h2 != h {
		t.Errorf("decodeHeader: %+v, %v, want %+v", h2, err, h)
	}
	if want := (Position{7, 3}); b.Position != want || b.Bytes != len(value) {
		t.Errorf("position %v of %d bytes, want %v of %d", b.Position, b.Bytes, want, len(value))
	}
}

func TestEveryFieldOfARecordIsStored(t *testing.T) {
	want := filled[Record](t)
	got, err := decodeRecord(appendRecord(nil, &want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got, cmpopts.IgnoreUnexported(Record{})); diff != "" {
		t.Errorf("the record came back otherwise (-want +got):\n%s", diff)
	}
}

func TestEveryFieldOfATokenIsStored(t *testing.T) {
	plain := fullToken()
	log := logID{1, 2, 3}
	compact := fullToken()
	compact.IDs = []instance.ID{id(3), "i-0123abcd", id(1), "I-0123ABCD", id(2)}
	compact.Answer.Cursor, compact.Answer.EndCursor = encodeCursor(log, Position{1, 2}), encodeCursor(log, Position{3, 4})
	first := compact.Answer.Changes[0]
	first.ID = "i-0123abcd"
	compact.Answer.Changes = []instance.StateChange{first, {ID: "I-0123ABCD", Previous: instance.StateRunning, Current: instance.StateRunning}}
	compact.Answer.Failures[0].Err.Message = noise(100) // too little to compress
	compact.Answer.Failures[0].Err.InstanceIDs = []instance.ID{"i"}
	large := *compact
	answer := *compact.Answer
	answer.Failures = slices.Repeat(compact.Answer.Failures, 20)
	large.Answer = &answer
	var all storagev1.Token
	for _, c := range []struct {
		token     *Token
		compactly bool
	}{{plain, false}, {plain, true}, {compact, false}, {compact, true}, {&large, true}} {
		value := appendToken(nil, c.token, log, c.compactly)
		var m storagev1.Token
		if err := proto.Unmarshal(value, &m); err != nil {
			t.Fatal(err)
		}
		got, err := decodeToken(c.token.Key, value, log)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(*c.token, got); diff != "" {
			t.Errorf("the token came back otherwise (-want +got):\n%s", diff)
		}
		if all.Answer != nil {
			m.Answer = nil // its fields are set already
		}
		proto.Merge(&all, &m)
	}
	wantComplete(t, all.ProtoReflect())
}

func TestTokensAreStoredInFewBytes(t *testing.T) {
	log := logID{1, 2, 3}
	token := func(ids int, refused bool) *Token {
		token := &Token{
			Key: strings.Repeat("k", 32), Principal: "arn:aws:iam::123456789012:user/alice", Fingerprint: make([]byte, 32), CreatedAt: launch,
			Intent: Position{1 << 63, 1 << 30},
			Answer: &Answer{Cursor: encodeCursor(log, Position{1 << 63, 1 << 30}), EndCursor: encodeCursor(log, Position{1 << 63, 1<<30 + 1})},
		}
		for range ids {
			id := instance.ID(fmt.Sprintf("i-%016x%x", rand.Uint64(), rand.IntN(16)))
			token.IDs = append(token.IDs, id)
			if refused && rand.IntN(2) == 0 {
				token.Answer.Failures = append(token.Answer.Failures, instance.Failure{ID: id, Err: &instance.Error{
					Kind: instance.KindPrecondition, Code: instance.CodeIncorrectInstanceState, InstanceIDs: []instance.ID{id},
					Message: fmt.Sprintf("The instance '%s' is not in a state from which it can be started.", id),
				}})
				continue
			}
			token.Answer.Changes = append(token.Answer.Changes, instance.StateChange{
				ID: id, Previous: instance.StateStopped, Current: instance.StatePending, At: launch,
			})
		}
		return token
	}
	for _, c := range []struct {
		name    string
		ids     int
		refused bool
		limit   int
	}{
		{"one instance", 1, false, 180},
		{"1,000 instances", 1000, false, 9000 + 300},
		{"1,000 instances, half of them refused", 1000, true, 9000 + 500*100},
	} {
		token := token(c.ids, c.refused)
		before, size := len(appendToken(nil, token, log, false)), len(appendToken(nil, token, log, true))
		t.Logf("%s: %d bytes, %d in format 3", c.name, size, before)
		if size > c.limit {
			t.Errorf("the token of %s takes %d bytes, want at most %d", c.name, size, c.limit)
		}
		if reserved := countedBytes(0, &Token{IDs: token.IDs}) + int64(len(appendToken(nil, &Token{IDs: token.IDs, Fingerprint: token.Fingerprint}, log, true))); !c.refused && reserved < int64(size) {
			t.Errorf("the intent of %s counts for %d bytes, and the answer takes %d", c.name, reserved, size)
		}
	}
}

func fullToken() *Token {
	return &Token{
		Key:         "alice/StartInstances/once",
		Principal:   "alice",
		Fingerprint: []byte{1, 2, 3},
		CreatedAt:   launch,
		Intent:      Position{Epoch: 5, Seq: 6},
		IDs:         []instance.ID{id(1), id(2)},
		Answer: &Answer{
			Changes: []instance.StateChange{{
				ID: id(1), Previous: instance.StateStopped, Current: instance.StatePending, At: launch,
			}},
			Failures: []instance.Failure{{ID: id(2), Err: &instance.Error{
				Kind:           instance.KindPrecondition,
				Code:           instance.CodeIncorrectInstanceState,
				Reason:         "REASON",
				Message:        "The instance is not in a state from which it can be started.",
				InstanceIDs:    []instance.ID{id(2)},
				RetryAfter:     time.Second,
				OutcomeUnknown: true,
				Metadata:       map[string]string{"a": "b"},
			}}},
			Cursor:    "here",
			EndCursor: "there",
		},
	}
}

func TestWhatIsEncodedByHandIsWhatGeneratedCodeWrites(t *testing.T) {
	same, other := filled[instance.Change](t), filled[instance.Change](t)
	same.After = same.Before.Clone()
	other.Before = anotherInEveryField(t, other.After)
	usual := filled[instance.Change](t)
	usual.Before, usual.After = inShortForm(usual.Before), inShortForm(usual.After)
	added, removed := filled[instance.Change](t), filled[instance.Change](t)
	usuallyAdded, usuallyRemoved := instance.Change{After: usual.After}, instance.Change{Before: usual.Before}
	added.Before, removed.After = nil, nil
	first, record, otherRecord := filled[Record](t), filled[Record](t), filled[Record](t)
	first.Previous, record.Previous = nil, record.Instance.Clone()
	otherRecord.Previous = anotherInEveryField(t, otherRecord.Instance)
	usualRecord, usualFirst := filled[Record](t), filled[Record](t)
	usualRecord.Instance, usualRecord.Previous = usual.After, usual.Before
	usualFirst.Instance, usualFirst.Previous = usual.After, nil
	change := func(c instance.Change) []byte { return codec.AppendHeader(codec.AppendChange(nil, &c), 7, launch, 99) }
	packed := codec.AppendHeader(codec.AppendCompressed(nil, bytes.Repeat(codec.AppendChange(nil, &added), 1024)), 7, launch, 99)
	for name, c := range map[string]struct {
		forms [][]byte
		// all has what the forms have together.
		all proto.Message
	}{
		"a batch":     {[][]byte{change(same), change(other), change(added), change(removed), change(usual), change(usuallyAdded), change(usuallyRemoved), packed}, &storagev1.LogRecord{}},
		"an instance": {[][]byte{appendRecord(nil, &record), appendRecord(nil, &otherRecord), appendRecord(nil, &usualRecord), appendRecord(nil, &usualFirst), appendRecord(nil, &first)}, &storagev1.InstanceRecord{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, form := range c.forms {
				m := c.all.ProtoReflect().New().Interface()
				if err := proto.Unmarshal(form, m); err != nil {
					t.Fatal(err)
				}
				if n := proto.Size(m); n != len(form) {
					t.Errorf("%d bytes by hand, %d by generated code", len(form), n)
				}
				if batch, ok := c.all.(*storagev1.LogRecord); ok && len(batch.GetChanges()) > 0 {
					more := m.(*storagev1.LogRecord)
					proto.Merge(batch.GetChanges()[0], more.GetChanges()[0])
					more.Changes = nil
				}
				proto.Merge(c.all, m)
			}
			if record, ok := c.all.(*storagev1.InstanceRecord); ok {
				record.Previous = record.GetInstance() // which only format 1 writes
			}
			wantComplete(t, c.all.ProtoReflect())
		})
	}
}

// inShortForm returns an instance whose host names and image are stored in fewer bytes than
// they have.
func inShortForm(i *instance.Instance) *instance.Instance {
	i = i.Clone()
	i.PrivateDNSName, i.PublicDNSName = i.UsualPrivateDNSName(), i.UsualPublicDNSName()
	i.ImageID = fmt.Sprintf("ami-0%016x", rand.Uint64()|1)
	return i
}

// anotherInEveryField returns an instance that has nothing in common with another one.
func anotherInEveryField(t *testing.T, i *instance.Instance) *instance.Instance {
	t.Helper()
	for {
		other := filled[instance.Instance](t)
		other.Tags = map[string]string{"other": "tags"}
		if codec.Diff(&other, i) == 0 {
			return &other
		}
	}
}

func TestWhatGeneratedCodeWritesIsReadByHand(t *testing.T) {
	want := filled[instance.Change](t)
	value := codec.AppendHeader(codec.AppendChange(codec.AppendChange(nil, &want), &want), 7, launch, 99)
	var m storagev1.LogRecord
	if err := proto.Unmarshal(value, &m); err != nil {
		t.Fatal(err)
	}
	b, _, err := decodeBatch(3, appendMessage(nil, &m))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.Events {
		if diff := cmp.Diff(want, *b.Events[i].Change); diff != "" {
			t.Errorf("the change came back otherwise (-want +got):\n%s", diff)
		}
	}
	if len(b.Events) != 2 {
		t.Errorf("%d changes came back, want 2", len(b.Events))
	}
}

func TestAStringThatIsNotUTF8IsDamage(t *testing.T) {
	c := change("i-\xff", instance.StatePending)
	if _, _, err := decodeBatch(3, codec.AppendHeader(codec.AppendChange(nil, &c), 7, launch, 99)); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("got %v, want an error about UTF-8", err)
	}
}

// wantComplete fails the test for fields of a message that are not set, and for
// those that the schema does not have.
func wantComplete(t *testing.T, m protoreflect.Message) {
	t.Helper()
	if len(m.GetUnknown()) > 0 {
		t.Errorf("%s has unknown fields: %x", m.Descriptor().FullName(), m.GetUnknown())
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case !m.Has(f):
			t.Errorf("%s is not written", f.FullName())
		case f.IsList() && f.Message() != nil:
			for n := range m.Get(f).List().Len() {
				wantComplete(t, m.Get(f).List().Get(n).Message())
			}
		case f.Message() != nil && !f.IsMap():
			wantComplete(t, m.Get(f).Message())
		}
	}
}

func TestEnumerationsHaveTheSameNumbersInStorage(t *testing.T) {
	for _, c := range []struct {
		ours   int
		stored protoreflect.Enum
	}{
		{int(instance.StateUnspecified), storagev1.InstanceState_INSTANCE_STATE_UNSPECIFIED},
		{int(instance.StatePending), storagev1.InstanceState_INSTANCE_STATE_PENDING},
		{int(instance.StateRunning), storagev1.InstanceState_INSTANCE_STATE_RUNNING},
		{int(instance.StateShuttingDown), storagev1.InstanceState_INSTANCE_STATE_SHUTTING_DOWN},
		{int(instance.StateTerminated), storagev1.InstanceState_INSTANCE_STATE_TERMINATED},
		{int(instance.StateStopping), storagev1.InstanceState_INSTANCE_STATE_STOPPING},
		{int(instance.StateStopped), storagev1.InstanceState_INSTANCE_STATE_STOPPED},
		{int(instance.ChangeAdded), storagev1.ChangeType_CHANGE_TYPE_ADDED},
		{int(instance.ChangeState), storagev1.ChangeType_CHANGE_TYPE_STATE},
		{int(instance.ChangeAttributes), storagev1.ChangeType_CHANGE_TYPE_ATTRIBUTES},
		{int(instance.ChangeRemoved), storagev1.ChangeType_CHANGE_TYPE_REMOVED},
		{int(instance.SourceUnspecified), storagev1.Source_SOURCE_UNSPECIFIED},
		{int(instance.SourceAnswer), storagev1.Source_SOURCE_ANSWER},
		{int(instance.SourceEventBridge), storagev1.Source_SOURCE_EVENT_BRIDGE},
		{int(instance.SourceReconcile), storagev1.Source_SOURCE_RECONCILE},
		{int(instance.SourceSimulator), storagev1.Source_SOURCE_SIMULATOR},
		{int(instance.KindInternal) + 1, storagev1.ErrorKind_ERROR_KIND_INTERNAL},
		{int(instance.KindInvalid) + 1, storagev1.ErrorKind_ERROR_KIND_INVALID},
		{int(instance.KindNotFound) + 1, storagev1.ErrorKind_ERROR_KIND_NOT_FOUND},
		{int(instance.KindPrecondition) + 1, storagev1.ErrorKind_ERROR_KIND_PRECONDITION},
		{int(instance.KindDryRun) + 1, storagev1.ErrorKind_ERROR_KIND_DRY_RUN},
		{int(instance.KindPermission) + 1, storagev1.ErrorKind_ERROR_KIND_PERMISSION},
		{int(instance.KindExhausted) + 1, storagev1.ErrorKind_ERROR_KIND_EXHAUSTED},
		{int(instance.KindConflict) + 1, storagev1.ErrorKind_ERROR_KIND_CONFLICT},
		{int(instance.KindOutOfRange) + 1, storagev1.ErrorKind_ERROR_KIND_OUT_OF_RANGE},
		{int(instance.KindUnavailable) + 1, storagev1.ErrorKind_ERROR_KIND_UNAVAILABLE},
	} {
		if int(c.stored.Number()) != c.ours {
			t.Errorf("%v is stored as %d, and is %d", c.stored, c.stored.Number(), c.ours)
		}
	}
}

func TestTimesOutsideOfWhatCanBeStoredAreNotKnown(t *testing.T) {
	for _, c := range []struct {
		name string
		at   time.Time
		want time.Time
	}{
		{"no time", time.Time{}, time.Time{}},
		{"long ago", time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}},
		{"far ahead", time.Date(2262, 12, 1, 0, 0, 0, 0, time.UTC), time.Time{}},
		{"in another zone", launch.In(time.FixedZone("", 3600)), launch},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := codec.Time(codec.Nanoseconds(c.at)); got != c.want {
				t.Errorf("%v came back as %v, want %v", c.at, got, c.want)
			}
		})
	}
}

// FuzzDecodeBatch: whatever etcd holds, decoding it neither panics nor yields
// something that cannot be encoded and read again.
func FuzzDecodeBatch(f *testing.F) {
	c := change(id(1), instance.StatePending)
	c.Before = machine(id(1), instance.StateStopped)
	f.Add(codec.AppendHeader(codec.AppendChange(nil, &c), 7, launch, 99))
	full := filled[instance.Change](f)
	f.Add(codec.AppendHeader(codec.AppendChange(nil, &full), 1, launch, 0))
	full.Before, full.After = inShortForm(full.Before), inShortForm(full.After)
	f.Add(codec.AppendHeader(codec.AppendChange(nil, &full), 1, launch, 0))
	f.Add(format1(f, "batch"))
	f.Add([]byte{})
	f.Add([]byte{0x22, 0x00})
	f.Fuzz(func(t *testing.T, value []byte) {
		b, h, err := decodeBatch(1, value)
		if err != nil {
			return
		}
		if h2, _, err := codec.DecodeHeader(value); err != nil || h2 != h {
			t.Fatalf("two headers: %+v, and %+v, %v", h, h2, err)
		}
		var again []byte
		for i := range b.Events {
			again = codec.AppendChange(again, b.Events[i].Change)
		}
		b2, h2, err := decodeBatch(1, codec.AppendHeader(again, h.Epoch, h.RecordedAt, h.Preceding))
		if err != nil || h2 != h || len(b2.Events) != len(b.Events) {
			t.Fatalf("came back otherwise: %+v, %v", h2, err)
		}
		for i := range b.Events {
			if diff := cmp.Diff(b.Events[i].Change, b2.Events[i].Change); diff != "" {
				t.Fatalf("event %d came back otherwise:\n%s", i, diff)
			}
		}
	})
}

func FuzzDecodeInstanceRecord(f *testing.F) {
	record := filled[Record](f)
	f.Add(appendRecord(nil, &record))
	f.Add(format1(f, "record"))
	f.Fuzz(func(t *testing.T, value []byte) {
		record, err := decodeRecord(value)
		if err != nil {
			return
		}
		again, err := decodeRecord(appendRecord(nil, record))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(record, again, cmpopts.IgnoreUnexported(Record{})); diff != "" {
			t.Fatalf("came back otherwise:\n%s", diff)
		}
	})
}

func FuzzDecodeToken(f *testing.F) {
	log := logID{1, 2, 3}
	token := fullToken()
	f.Add(appendToken(nil, token, log, false))
	token.Answer.Cursor, token.Answer.EndCursor = encodeCursor(log, Position{1, 2}), encodeCursor(log, Position{3, 4})
	f.Add(appendToken(nil, token, log, true))
	token.Answer.Changes[0].ID = id(3)
	f.Add(appendToken(nil, token, log, true))
	token.IDs = append(token.IDs, "i-0123abcd", "i-0123ABCD")
	token.Answer.Failures = slices.Repeat(token.Answer.Failures, 20)
	f.Add(appendToken(nil, token, log, true))
	f.Fuzz(func(t *testing.T, value []byte) {
		token, err := decodeToken("key", value, log)
		if err != nil {
			return
		}
		for _, compactly := range []bool{false, true} {
			again, err := decodeToken("key", appendToken(nil, &token, log, compactly), log)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(token, again); diff != "" {
				t.Fatalf("came back otherwise:\n%s", diff)
			}
		}
	})
}
