package server_test

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// cursorBody returns what a cursor holds before its checksum; its last eight bytes are
// the sequence number.
func cursorBody(t *testing.T, cursor string) []byte {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	return raw[:len(raw)-4]
}

func seqOf(t *testing.T, cursor string) uint64 {
	t.Helper()
	body := cursorBody(t, cursor)
	return binary.BigEndian.Uint64(body[len(body)-8:])
}

// beyond returns the cursor of a batch that is so many batches later.
func beyond(t *testing.T, cursor string, by uint64) string {
	t.Helper()
	body := cursorBody(t, cursor)
	binary.BigEndian.PutUint64(body[len(body)-8:], seqOf(t, cursor)+by)
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body)))
}

func restoredAndWrittenTo(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()+"/restored"
	first := servertest.New(t, servertest.Options{DataDir: dir, Fleet: fleet(4)})
	all := reference(t, first)
	busy(t, first, ids(4), 5)
	kept := settled(t, first, ids(4))
	logUpTo(t, all, kept)
	first.Close()
	before, err := all.End(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	copyDir(t, dir, copied)

	second := servertest.New(t, servertest.Options{DataDir: dir})
	forgotten := watch(t, second, &instancedv1.WatchInstancesRequest{AfterCursor: kept})
	busy(t, second, ids(4), 5)
	last := settled(t, second, ids(4))
	seen := until(t, forgotten, func(c *conformance.Connection) bool { return hasCursor(c, last) })
	second.Close()
	var lost []string
	for _, m := range seen.Messages {
		if m.GetEvents() != nil && m.GetCursor() != "" {
			lost = append(lost, m.GetCursor())
		}
	}

	restored := servertest.New(t, servertest.Options{DataDir: copied})
	allLost := func() {
		t.Helper()
		for n, cursor := range lost {
			if n == 0 || n == len(lost)-1 {
				refusedEverywhere(t, restored, cursor, "CURSOR_ROLLED_BACK")
				beginsAgain(t, restored, cursor, instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_ROLLED_BACK)
			} else {
				wantRefusal(t, watchError(t, restored, cursor), codes.OutOfRange, "CURSOR_ROLLED_BACK")
			}
		}
	}
	allLost()
	again := watch(t, restored, &instancedv1.WatchInstancesRequest{
		AfterCursor: last, OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT,
	})
	rest := watch(t, restored, &instancedv1.WatchInstancesRequest{AfterCursor: kept})
	end := head(t, restored)
	for seqOf(t, end) <= seqOf(t, last) {
		busy(t, restored, ids(4), 5)
		end = settled(t, restored, ids(4))
	}
	// The numbers of the lost changes belong to other changes now.
	allLost()

	log, err := conformance.NewLog(before, until(t, rest, func(c *conformance.Connection) bool { return hasCursor(c, end) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		log.Agrees(history(t, restored, ids(4), log.Begin())),
		conformance.All(log, rest.Seen()),
		conformance.All(log, passed(t, again, log)),
	); err != nil {
		t.Error(err)
	}
}

// expire writes until a cursor is older than what is kept.
func expire(t *testing.T, srv *servertest.Server, cursor string, write func()) {
	t.Helper()
	for {
		write()
		info, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if seqOf(t, info.GetOldestCursor()) > seqOf(t, cursor) {
			return
		}
	}
}

func TestASubscriberThatMatchesNothingOutlivesWhatIsKept(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options servertest.Options
		write   func(t *testing.T, srv *servertest.Server)
	}{
		"by size": {
			servertest.Options{Fleet: fleet(50), JournalMaxBytes: 1 << 20},
			func(t *testing.T, srv *servertest.Server) { outgrow(t, srv, ids(50)) },
		},
		"by age": {
			servertest.Options{Fleet: fleet(2), Retention: 10 * time.Second},
			func(t *testing.T, srv *servertest.Server) {
				busy(t, srv, ids(2), 1)
				pause(t.Context(), 200*time.Millisecond)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := servertest.New(t, test.options)
			all, err := conformance.Watch(t.Context(), srv.Instances(), &instancedv1.WatchInstancesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			until(t, all, conformance.SnapshotSeen)
			begin := head(t, srv)
			request := func(after string, filter *instancedv1.InstanceFilter) *instancedv1.WatchInstancesRequest {
				return &instancedv1.WatchInstancesRequest{AfterCursor: after, Filter: filter, ProgressInterval: durationpb.New(time.Second)}
			}
			attached, err := conformance.Watch(t.Context(), srv.Instances(), request(begin, team("green")))
			if err != nil {
				t.Fatal(err)
			}
			expire(t, srv, begin, func() { test.write(t, srv) })
			wantRefusal(t, watchError(t, srv, begin), codes.OutOfRange, "CURSOR_EXPIRED")

			// One that leaves now goes on where its last progress message says. One that was sent
			// before the last changes may have expired like begin: more than is kept may have been
			// recorded since.
			end := seqOf(t, head(t, srv))
			left := until(t, attached, func(c *conformance.Connection) bool { return seqOf(t, c.Cursor()) >= end })
			if left.Err != nil || len(left.Events()) > 0 {
				t.Fatalf("the subscriber has seen %v, and its stream ended with %v", left.Events(), left.Err)
			}
			back, err := conformance.Watch(t.Context(), srv.Instances(), request(left.Cursor(), team("green")))
			if err != nil {
				t.Fatal(err)
			}
			until(t, back, conformance.Subscribed)
			if _, err := srv.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
				InstanceIds: ids(1), SetTags: map[string]string{"team": "green"},
			}}}); err != nil {
				t.Fatal(err)
			}
			log := logUpTo(t, all, settled(t, srv, ids(2)))
			if err := errors.Join(
				conformance.All(log, passed(t, attached, log)),
				conformance.All(log, left, passed(t, back, log)),
			); err != nil {
				t.Error(err)
			}
			for who, r := range map[string]*conformance.Recorder{"attached": attached, "back": back} {
				if n := len(r.Seen().Events()); n != 1 {
					t.Errorf("the subscriber that is %s has seen %d events, want the one that it waited for", who, n)
				}
			}
		})
	}
}

func TestASubscriberThatRetentionPassesIsToldOrBeginsAgain(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(50), JournalMaxBytes: 1 << 20})
	all, err := conformance.Watch(t.Context(), srv.Instances(), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, all, conformance.SnapshotSeen)
	begin := head(t, srv)
	// They do not read, each on a connection of its own.
	slow := func(policy instancedv1.UnusableCursorPolicy) (*conformance.Connection, func() error) {
		c := &conformance.Connection{Request: &instancedv1.WatchInstancesRequest{
			AfterCursor: begin, OnUnusableCursor: policy, ProgressInterval: durationpb.New(time.Second),
		}}
		stream, err := instancedv1.NewInstanceServiceClient(srv.Dial()).WatchInstances(t.Context(), c.Request)
		if err != nil {
			t.Fatal(err)
		}
		receive := func() error {
			m, err := stream.Recv()
			if err == nil {
				c.Messages = append(c.Messages, conformance.Message{WatchInstancesResponse: m})
			}
			return err
		}
		if err := receive(); err != nil {
			t.Fatal(err)
		}
		return c, receive
	}
	told, tell := slow(instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_FAIL)
	anew, goOn := slow(instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT)
	write := func() {
		busy(t, srv, ids(50), 5)
		outgrow(t, srv, ids(50))
	}
	// First what fills the windows of the transport, then what passes them.
	expire(t, srv, begin, write)
	expire(t, srv, head(t, srv), write)
	log := logUpTo(t, all, settled(t, srv, ids(50)))

	for err = nil; err == nil; {
		err = tell()
	}
	wantRefusal(t, err, codes.OutOfRange, "CURSOR_EXPIRED")
	oldest := ""
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			oldest = info.GetMetadata()["oldest_cursor"]
		}
	}
	if oldest == "" {
		t.Errorf("the error does not name the oldest cursor: %v", err)
	}
	if len(told.Events()) == 0 {
		t.Error("what had been sent before was not delivered")
	}
	for anew.Cursor() == "" || log.Head() != revision(log, anew.Cursor()) {
		if err := goOn(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(conformance.All(log, told), conformance.All(log, anew)); err != nil {
		t.Error(err)
	}
	marked := 0
	for _, m := range anew.Messages {
		if m.GetSnapshot().GetFirst() && m.GetSnapshot().GetReason() == instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("it began again %d times with a snapshot that says why, want once", marked)
	}
}

// revision is that of a cursor, the highest there is for one that the log does not have.
func revision(log *conformance.Log, cursor string) uint64 {
	r, err := log.Revision(cursor)
	if err != nil {
		return ^uint64(0)
	}
	return r
}
