package main

import (
	"bytes"
	"context"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestEachNodeHasAnOutcomeOfItsOwn(t *testing.T) {
	const fallsBack, noCapacity = "i-0a0000000000000fa", "i-0a0000000000000ca"
	tag := func(name string) map[string]string { return map[string]string{"node": name} }
	only := func(id string) *instancedv1.FaultMatch { return &instancedv1.FaultMatch{InstanceIds: []string{id}} }
	srv := servertest.New(t, servertest.Options{Speed: 500, Fleet: &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{
			{Tags: tag("node01")},
			{Tags: tag("node02")},
			{Tags: tag("node03"), InstanceId: fallsBack},
			{Tags: tag("node04"), InstanceId: noCapacity},
			{Tags: tag("node05"), State: terminated},
			{Tags: tag("twin"), Count: 2},
			{Tags: tag("stuck")},
			{Tags: tag("other")},
		},
		Faults: []*instancedv1.Fault{
			{Kind: instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED, Match: only(fallsBack)},
			{Kind: instancedv1.FaultKind_FAULT_KIND_INSUFFICIENT_CAPACITY, Match: only(noCapacity)},
			{Kind: instancedv1.FaultKind_FAULT_KIND_STUCK_TRANSITION, Match: &instancedv1.FaultMatch{Tags: tag("stuck"), Verbs: []string{"StopInstances"}}},
		},
	}})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	const address = ` -> 10\.\d+\.\d+\.\d+`
	tests := []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"resume", "node[01-02]"}, 0, []string{`node01` + address, `node02` + address}},
		{[]string{"resume", "node[03-05],node02,twin,stuck"}, 1, []string{
			`node03 failed: Client.InternalError: .+`,
			`node04 failed: InsufficientInstanceCapacity: .+`,
			`node05 failed: no instance has this name as its tag "node"`,
			`node02` + address,
			`twin failed: i-\w+ and i-\w+ both have this name`,
			`stuck` + address,
		}},
		{[]string{"suspend", "node[01-03]"}, 0, []string{`node01 is stopped`, `node02 is stopped`, `node03 is stopped`}},
		{[]string{"--timeout", "500ms", "suspend", "node01,stuck"}, 1, []string{`node01 is stopped`, `stuck failed: it took longer than 500ms`}},
		{[]string{"resume", "none"}, 1, []string{`none failed: no instance has this name as its tag "node"`}},
	}
	for _, test := range tests {
		var stdout, stderr bytes.Buffer
		status := run(ctx, append([]string{"--server", lis.Addr().String()}, test.args...), &stdout, &stderr)
		if want := regexp.MustCompile("^" + strings.Join(test.want, "\n") + "\n$"); status != test.status || !want.MatchString(stdout.String()) {
			t.Errorf("%q: status %d\n%s%s", test.args, status, &stdout, &stderr)
		}
	}
}

func TestTheServiceCannotBeAsked(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), []string{"--server", "127.0.0.1:1", "resume", "node1"}, &stdout, &stderr); status != 3 || stdout.Len() > 0 {
		t.Errorf("status %d, %q", status, &stdout)
	}
}

func TestAWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"resume"}, {"start", "node1"}, {"resume", "node1", "node2"}, {"resume", "node[1"}, {"--timeout", "x"}} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), args, &stdout, &stderr); status != 2 || stderr.Len() == 0 {
			t.Errorf("%q: status %d, %q", args, status, &stderr)
		}
	}
}
