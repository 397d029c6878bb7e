package codec

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/instanced/instanced/internal/instance"
)

// The bytes in testdata were written before this package existed.
func TestBytesOnDiskAreWhatTheyWere(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "format-4"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	next := func(kind string) []byte {
		t.Helper()
		if len(lines) == 0 {
			t.Fatal("there are more cases than lines")
		}
		digits, ok := strings.CutPrefix(lines[0], kind+" ")
		value, err := hex.DecodeString(digits)
		if !ok || err != nil {
			t.Fatalf("no %s: %.20q, %v", kind, lines[0], err)
		}
		lines = lines[1:]
		return value
	}
	for n, c := range goldenChanges() {
		want := next("change")
		if diff := cmp.Diff(want, AppendChange(nil, &c)); diff != "" {
			t.Errorf("change %d is written differently (-want +got):\n%s", n, diff)
		}
		wires, err := Changes(want)
		if err != nil || len(wires) != 1 {
			t.Fatalf("%d changes, %v", len(wires), err)
		}
		got, err := DecodeChange(wires[0])
		if diff := cmp.Diff(c, got); err != nil || diff != "" {
			t.Errorf("change %d: %v (-want +got):\n%s", n, err, diff)
		}
		if c.After == nil {
			continue
		}
		r := Record{Instance: c.After, Previous: c.Before, Cause: c.Cause, Source: c.Source, ChangedAt: c.OccurredAt, Epoch: 7, Seq: 8, Index: 9}
		want = next("record")
		if diff := cmp.Diff(want, AppendRecord(nil, &r)); diff != "" {
			t.Errorf("record %d is written differently (-want +got):\n%s", n, diff)
		}
		record, err := DecodeRecord(want)
		if diff := cmp.Diff(r, record); err != nil || diff != "" {
			t.Errorf("record %d: %v (-want +got):\n%s", n, err, diff)
		}
	}
	if len(lines) > 0 {
		t.Errorf("%d lines are left", len(lines))
	}
}

// instanceWith returns an instance in which one field has a value that is not zero.
func instanceWith(t *testing.T, name string) *instance.Instance {
	t.Helper()
	i := &instance.Instance{}
	v := reflect.ValueOf(i).Elem().FieldByName(name)
	switch at := v.Addr().Interface().(type) {
	case *time.Time:
		*at = time.Unix(1, 2).UTC()
	case *instance.State:
		*at = instance.StateStopped
	case *map[string]string:
		*at = map[string]string{"a": "b"}
	case **instance.StateReason:
		*at = &instance.StateReason{Code: "c"}
	case **instance.SimulatorAttributes:
		*at = &instance.SimulatorAttributes{EverRunning: true}
	default:
		switch v.Kind() {
		case reflect.String:
			v.SetString("text")
		case reflect.Int32, reflect.Int64, reflect.Int:
			v.SetInt(3)
		case reflect.Bool:
			v.SetBool(true)
		default:
			t.Fatalf("the field %s needs a value in this test", name)
		}
	}
	return i
}

// Whoever adds a field to an instance adds one entry to the table, and this test passes again.
func TestEveryFieldOfAnInstanceHasOneEntryInTheTable(t *testing.T) {
	kind := reflect.TypeFor[instance.Instance]()
	entries := map[string]int{}
	for n := range table {
		f := &table[n]
		var found []string
		for field := range kind.Fields() {
			name := field.Name
			if !f.equal(instanceWith(t, name), &instance.Instance{}) {
				found = append(found, name)
				entries[name]++
			}
		}
		if len(found) != 1 {
			t.Errorf("the entry of number %d is about the fields %v, want one", f.number, found)
		}
		if byNumber[f.number] != f {
			t.Errorf("number %d is used twice", f.number)
		}
	}
	for field := range kind.Fields() {
		name := field.Name
		t.Run(name, func(t *testing.T) {
			if entries[name] != 1 {
				t.Fatalf("%d entries, want one", entries[name])
			}
			i, zero := instanceWith(t, name), &instance.Instance{}
			if i.Equal(zero) {
				t.Error("instance.Equal ignores it")
			}
			var number Fields
			for n := range table {
				if f := &table[n]; !f.equal(i, zero) {
					number = 1 << f.number
				}
			}
			if same := Diff(i, zero); same&number != 0 || same|number != Diff(zero, zero) {
				t.Errorf("Diff returns %b", same)
			}
			patched := &instance.Instance{}
			if Patch(patched, i, number); !patched.Equal(i) {
				t.Errorf("Patch copies %+v", patched)
			}
			for _, c := range []instance.Change{{After: i}, {Before: i}, {Before: zero, After: i}, {Before: i, After: zero}, {Before: i, After: i.Clone()}} {
				wires, err := Changes(AppendChange(nil, &c))
				if err != nil || len(wires) != 1 {
					t.Fatalf("%d changes, %v", len(wires), err)
				}
				got, err := DecodeChange(wires[0])
				if diff := cmp.Diff(c, got); err != nil || diff != "" {
					t.Errorf("it came back as another: %v (-want +got):\n%s", err, diff)
				}
			}
		})
	}
}

func TestAChangeIsEncodedWithoutAllocations(t *testing.T) {
	b := make([]byte, 0, 4096)
	for n, c := range goldenChanges() {
		if allocs := testing.AllocsPerRun(10, func() { b = AppendChange(b[:0], &c) }); allocs > 0 {
			t.Errorf("change %d takes %v allocations", n, allocs)
		}
	}
}

func FuzzDecodeChange(f *testing.F) {
	for _, c := range goldenChanges() {
		wires, err := Changes(AppendChange(nil, &c))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wires[0])
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		c, err := DecodeChange(wire)
		if err != nil {
			return
		}
		wires, err := Changes(AppendChange(nil, &c))
		if err != nil || len(wires) != 1 {
			t.Fatalf("%d changes, %v", len(wires), err)
		}
		again, err := DecodeChange(wires[0])
		if diff := cmp.Diff(c, again); err != nil || diff != "" {
			t.Errorf("what was read is written as another: %v (-want +got):\n%s", err, diff)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	for _, c := range goldenChanges() {
		if c.After != nil {
			f.Add(AppendRecord(nil, &Record{Instance: c.After, Previous: c.Before, Epoch: 1}))
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := DecodeRecord(value)
		if err != nil {
			return
		}
		again, err := DecodeRecord(AppendRecord(nil, &r))
		if diff := cmp.Diff(r, again); err != nil || diff != "" {
			t.Errorf("what was read is written as another: %v (-want +got):\n%s", err, diff)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	changes := AppendChange(nil, &goldenChanges()[0])
	for len(changes) < minCompressed {
		changes = append(changes, changes...)
	}
	f.Add(AppendHeader(AppendCompressed(nil, changes), 1, time.Unix(1, 0), 2))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, value []byte) {
		h, message, err := Decompress(value)
		if err == nil && len(message) > max(maxDecompressed, len(value)) {
			t.Errorf("%v expands to %d bytes", h, len(message))
		}
	})
}

func FuzzDecodeIDs(f *testing.F) {
	f.Add(AppendIDs(nil, []instance.ID{"i-0123456789abcdef0", "i-0123abcd", "other"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := DecodeIDs(b)
		if err != nil {
			return
		}
		again, err := DecodeIDs(AppendIDs(nil, ids))
		if fmt.Sprint(ids) != fmt.Sprint(again) || err != nil {
			t.Errorf("%v came back as %v, %v", ids, again, err)
		}
	})
}

// goldenChanges are the changes in testdata/format-4. Their bytes must never change.
func goldenChanges() []instance.Change {
	at := time.Date(2026, 11, 28, 12, 0, 0, 5, time.UTC)
	cause := instance.Cause{Principal: "alice", Verb: instance.VerbStart, RequestID: "r-1", ClientToken: "token"}
	ec2 := instance.Instance{
		ID: "i-0123456789abcdef0", AccountID: "123456789012", Region: "eu-west-1", AvailabilityZone: "eu-west-1a",
		Type: "t3.micro", State: instance.StateStopped, LaunchTime: at, PrivateIPAddress: "10.0.0.7", Tenancy: "default",
		RootDeviceType: "ebs", Tags: map[string]string{"Name": "web"}, ImageID: "ami-0abcdef1234567890", AMILaunchIndex: 3,
		StateReason:           &instance.StateReason{Code: "Client.UserInitiatedShutdown", Message: "by a user"},
		StateTransitionReason: "User initiated (2026-11-28 12:00:00 GMT)",
	}
	ec2.PrivateDNSName = ec2.UsualPrivateDNSName()
	started := ec2
	started.State, started.StateReason, started.StateTransitionReason = instance.StatePending, nil, ""
	started.PublicIPAddress, started.LaunchTime = "203.0.113.9", at.Add(time.Minute)
	started.PublicDNSName = started.UsualPublicDNSName()
	odd := started
	odd.ImageID, odd.PrivateDNSName, odd.PublicDNSName, odd.Lifecycle = "ami-12c6146b", "db.internal", "db.example.com", "spot"
	odd.Simulator = &instance.SimulatorAttributes{
		DisableAPIStop: true, DisableAPITermination: true, HibernationConfigured: true, Hibernated: true, MemoryLost: true,
		CPUCredits: "unlimited", BilledSeconds: 61, EverRunning: true, NextState: instance.StateRunning, NextAt: at,
		NextReason: &instance.StateReason{Code: "c", Message: "m"}, Transitions: 4, BilledFrom: at,
		Launched:         &instance.Launched{ReservationID: "r", ImageID: "ami-1", ClientToken: "t", Digest: "d"},
		SpotInstanceType: "persistent", InterruptionBehavior: "stop", LaunchIndex: 5,
	}
	tagged := odd
	tagged.Tags = nil
	step := func(kind instance.ChangeType, before, after *instance.Instance) instance.Change {
		return instance.Change{Type: kind, Before: before, After: after, Cause: cause, Source: instance.SourceAnswer, OccurredAt: at, ObservedAt: at.Add(1), Inferred: kind == instance.ChangeAttributes}
	}
	return []instance.Change{
		step(instance.ChangeAdded, nil, &ec2),
		step(instance.ChangeState, &ec2, &started),
		step(instance.ChangeState, &started, &ec2),
		step(instance.ChangeAttributes, &started, &odd),
		step(instance.ChangeAttributes, &odd, &tagged),
		{Type: instance.ChangeRemoved, Before: &tagged, Source: instance.SourceReconcile},
		step(instance.ChangeState, &instance.Instance{ID: "i-1"}, &instance.Instance{ID: "i-1", State: instance.StateTerminated}),
	}
}
