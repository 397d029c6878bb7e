package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// patient is the context of a test that waits for conditions.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// serve runs the service with a pool of so many machines, and one of which every start
// falls back. It returns a client of it, and its address.
func serve(t *testing.T, machines int) (*client.Client, string) {
	t.Helper()
	const broken = "i-0a0000000000000fa"
	tags := map[string]string{"pool": "ci"}
	fleet := []*instancedv1.InstanceSpec{
		{InstanceId: broken, Tags: tags},
		{Count: 2, Tags: map[string]string{"pool": "another"}},
	}
	for range machines {
		fleet = append(fleet, &instancedv1.InstanceSpec{Tags: tags})
	}
	srv := servertest.New(t, servertest.Options{Speed: 500, Fleet: &instancedv1.CreateInstancesRequest{
		Instances: fleet,
		Faults: []*instancedv1.Fault{{
			Kind:  instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED,
			Match: &instancedv1.FaultMatch{InstanceIds: []string{broken}},
		}},
	}})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	return client.New(srv.Conn(), client.Options{}), lis.Addr().String()
}

// starts returns how often each instance has left stopped, and fails the test for one that
// is not stopped now.
func starts(t *testing.T, c *client.Client) map[string]int {
	t.Helper()
	var ids []string
	for page, err := range c.Describe(patient(t), &instancedv1.DescribeInstancesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.GetInstances() {
			ids = append(ids, i.GetInstanceId())
			if i.GetState().GetName() != stopped {
				t.Errorf("%s is %v", i.GetInstanceId(), i.GetState().GetName())
			}
		}
	}
	count := make(map[string]int)
	for page, err := range c.Events(patient(t), &instancedv1.ListEventsRequest{InstanceIds: ids}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.GetEvents() {
			if e.GetPreviousState().GetName() == stopped && e.GetInstance().GetState().GetName() != stopped {
				count[e.GetInstance().GetInstanceId()]++
			}
		}
	}
	return count
}

func TestWorkersOfSeveralProgramsNeverShareAMachine(t *testing.T) {
	const programs, jobs = 3, 8
	c, address := serve(t, 3)
	dir := t.TempDir()
	// To make a directory that is there already fails, and so does the job.
	command := fmt.Sprintf(`mkdir %[1]s/$INSTANCE_ID && sleep 0.03 && rmdir %[1]s/$INSTANCE_ID && echo "$INSTANCE_ID $INSTANCE_ADDRESS"`, dir)
	outputs := make([]bytes.Buffer, programs)
	var running sync.WaitGroup
	for i := range programs {
		running.Go(func() {
			var stderr bytes.Buffer
			args := []string{"--server", address, "--pool", "ci", "--workers", "4", "--jobs", fmt.Sprint(jobs), "sh", "-c", command}
			if status := run(patient(t), args, &outputs[i], &stderr); status != 0 {
				t.Errorf("status %d: %s", status, &stderr)
			}
		})
	}
	running.Wait()

	used := make(map[string]int)
	for i := range outputs {
		for line := range strings.Lines(outputs[i].String()) {
			id, ip, _ := strings.Cut(strings.TrimSpace(line), " ")
			if net.ParseIP(ip) == nil {
				t.Errorf("a job ran on %q at %q", id, ip)
			}
			used[id]++
		}
	}
	total := 0
	started := starts(t, c)
	for id, n := range used {
		total += n
		if started[id] != n {
			t.Errorf("%s was started %d times for %d jobs", id, started[id], n)
		}
	}
	if total != programs*jobs || len(used) != 3 {
		t.Errorf("%d jobs on %d machines", total, len(used))
	}
	for id, n := range started {
		// Each worker of a program may find out by itself.
		if used[id] == 0 && n > programs*4 {
			t.Errorf("%s, which never gets to running, was started %d times", id, n)
		}
	}
}

func TestAProgramThatIsToldToEndStopsItsMachines(t *testing.T) {
	c, address := serve(t, 2)
	begun := filepath.Join(t.TempDir(), "begun")
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	status := make(chan int)
	go func() {
		var stdout, stderr bytes.Buffer
		args := []string{"--server", address, "--pool", "ci", "--workers", "1", "--jobs", "5", "sh", "-c", "touch " + begun + "; exec sleep 600"}
		status <- run(ctx, args, &stdout, &stderr)
	}()
	for {
		if _, err := os.Stat(begun); err == nil {
			break
		}
		select {
		case got := <-status:
			t.Fatalf("it ended with status %d", got)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if got := <-status; got != 1 {
		t.Errorf("status %d", got)
	}
	if n := len(starts(t, c)); n == 0 {
		t.Error("nothing was started")
	}
}

func TestAPoolWithoutAMachineThatStartsIsAnError(t *testing.T) {
	_, address := serve(t, 0)
	var stdout, stderr bytes.Buffer
	if status := run(patient(t), []string{"--server", address, "--pool", "ci", "true"}, &stdout, &stderr); status != 1 {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(stderr.String(), "i-0a0000000000000fa: Client.InternalError") {
		t.Errorf("it says %q", &stderr)
	}
}

func TestAWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"--pool", "ci"}, {"true"}, {"--pool", "ci", "--workers", "0", "true"}, {"--jobs", "x"}} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), args, &stdout, &stderr); status != 2 || !strings.Contains(stderr.String(), "usage:") {
			t.Errorf("%q: status %d, %q", args, status, &stderr)
		}
	}
}
