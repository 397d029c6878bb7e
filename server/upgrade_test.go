package server_test

import (
	"slices"
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/server/servertest"
)

// An attribute that an earlier version did not record is a change of each instance, once.
func TestWhatAnEarlierVersionDidNotRecordChangesOnce(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	opts := servertest.Options{DataDir: t.TempDir(), Fleet: fleet(3)}
	first := servertest.New(t, opts)
	known, err := first.Instances().DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	begin := known.GetCursor()
	first.Close()

	j, err := journal.Open(ctx, journal.Config{DataDir: opts.DataDir, MinFreeDisk: -1, Address: "bufconn"})
	if err != nil {
		t.Fatal(err)
	}
	term, err := j.Campaign(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = term.Update(ctx, func(tx *journal.Tx) error {
		for _, r := range j.Snapshot().Records {
			older := r.Instance.Clone()
			older.ImageID, older.PrivateDNSName, older.PublicDNSName = "", "", ""
			tx.Append(instance.Change{Type: instance.ChangeAttributes, Before: r.Instance, After: older, Source: instance.SourceReconcile})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(ctx); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time there is nothing left to change
		srv := servertest.New(t, opts)
		for _, i := range known.GetInstances() {
			events := history(t, srv, []string{i.GetInstanceId()}, begin)
			if len(events) != 2 {
				t.Fatalf("%s has %d events, want that of the test and one more: %v", i.GetInstanceId(), len(events), events)
			}
			e := events[1]
			if want := []string{"image_id", "private_dns_name"}; e.GetType() != instancedv1.EventType_EVENT_TYPE_ATTRIBUTES_CHANGED || !slices.Equal(e.GetChangedFields(), want) {
				t.Errorf("%v of %v, want ATTRIBUTES_CHANGED of %v", e.GetType(), e.GetChangedFields(), want)
			}
			if now := e.GetInstance(); now.GetImageId() != i.GetImageId() || now.GetImageId() == "" || now.GetPrivateDnsName() != i.GetPrivateDnsName() {
				t.Errorf("it is now %v, and was %v", now, i)
			}
		}
		srv.Close()
	}
}
