package server_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

func TestLargeFilters(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	tags := func(count int, size int) []*instancedv1.TagFilter {
		values := make([]string, count)
		for i := range values {
			values[i] = fmt.Sprintf("%0*d", size, i)
		}
		return []*instancedv1.TagFilter{{Key: "team", Values: values}}
	}
	for name, test := range map[string]struct {
		filter *instancedv1.InstanceFilter
		says   string
	}{
		"1,000 ids and 1,000 tags": {&instancedv1.InstanceFilter{InstanceIds: ids(1000), Tags: tags(1000, 4)}, "has 2000 values: want at most 1000"},
		"1,000 long tags":          {&instancedv1.InstanceFilter{Tags: tags(1000, 256)}, "has 256004 bytes of text: want at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := srv.Instances().WatchInstances(patient(t), &instancedv1.WatchInstancesRequest{Filter: test.filter})
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			wantRefusal(t, err, codes.InvalidArgument, "INVALID_REQUEST")
			if text := allThatIsSaid(err); !strings.Contains(text, test.says) {
				t.Errorf("the error does not say %q: %s", test.says, text)
			}
			_, err = srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{Filter: test.filter})
			wantRefusal(t, err, codes.InvalidArgument, "INVALID_REQUEST")
		})
	}
	t.Run("as large as may be", func(t *testing.T) {
		blue := []string{"blue"}
		for i := range 499 {
			blue = append(blue, fmt.Sprint(i))
		}
		r := watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true, Filter: &instancedv1.InstanceFilter{
			InstanceIds: ids(500), Tags: []*instancedv1.TagFilter{{Key: "team", Values: blue}},
		}})
		start(t, srv, id(0))
		start(t, srv, id(1))
		c := until(t, r, func(c *conformance.Connection) bool { return len(c.Events()) == 2 })
		for _, e := range c.Events() {
			if e.GetInstance().GetInstanceId() != id(1) {
				t.Errorf("it delivers %v", e)
			}
		}
	})
}

// TestLargeWaitsDoNotHoldUpLargeRequests has more waits under way than large requests are
// decoded at once, each of them large because of an unknown field.
func TestLargeWaitsDoNotHoldUpLargeRequests(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	padding := protowire.AppendTag(nil, 1000, protowire.BytesType)
	padding = protowire.AppendBytes(padding, make([]byte, 100<<10))
	ctx, leave := context.WithCancel(patient(t))
	defer leave()
	var waiting sync.WaitGroup
	for range 6 {
		waiting.Go(func() {
			req := &instancedv1.WaitInstancesRequest{
				InstanceIds: []string{example}, States: []instancedv1.InstanceStateName{running}, Timeout: durationpb.New(time.Hour),
			}
			req.ProtoReflect().SetUnknown(padding)
			_, err := srv.Instances().WaitInstances(ctx, req)
			wantCode(t, err, codes.Canceled)
		})
	}
	for range 20 {
		req := &instancedv1.DescribeInstancesRequest{}
		req.ProtoReflect().SetUnknown(padding)
		if _, err := srv.Instances().DescribeInstances(patient(t), req); err != nil {
			t.Fatalf("a large request: %v", err)
		}
	}
	leave()
	waiting.Wait()
}
