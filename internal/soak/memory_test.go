package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	// flatFleet is how many instances there are, and flatMemory what the process may have
	// from the system then, in bytes, apart from etcd's cache of its database.
	flatFleet  = 10_000
	flatMemory = 200 << 20
	// flatCallers make a call each flatPause, on average: some hundred changes a second.
	flatCallers, flatPause = 16, 50 * time.Millisecond
)

// TestMemoryIsFlat has a process work for as long as INSTANCED_SOAK says on 10,000 instances,
// with limits that are reached within the first half, and compares the quarters of the second.
func TestMemoryIsFlat(t *testing.T) {
	text := os.Getenv(soakEnv)
	if text == "" {
		t.Skip("make soak runs it")
	}
	lasts, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	ids := instanceIDs(flatFleet)
	var file strings.Builder
	file.WriteString("instances:\n")
	for n, id := range ids {
		fmt.Fprintf(&file, "- {instance_id: %s, tags: {team: %s}}\n", id, teams[n%2])
	}
	fleet := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(fleet, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newProcess(t, "--data-dir", t.TempDir(), "--sim-fleet", fleet, "--sim-speed", "60", "--log-level", "warn",
		"--journal-max-bytes", "16MiB", "--max-client-tokens", "2000")
	p.start()
	p.ready()

	ctx, stop := context.WithCancel(t.Context())
	defer time.AfterFunc(lasts, stop).Stop()
	instances := instancedv1.NewInstanceServiceClient(dial(t, p.address))
	var work sync.WaitGroup
	for n := range 10 {
		req := &instancedv1.WatchInstancesRequest{}
		if n%2 == 1 {
			req.Filter = &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "team", Values: teams[n/2%2 : n/2%2+1]}}}
		}
		stream, err := instances.WatchInstances(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for {
				if _, err := stream.Recv(); err != nil {
					if ctx.Err() == nil {
						t.Errorf("a watch ended: %v", err)
					}
					return
				}
			}
		})
	}
	var calls [flatCallers]int
	for n := range flatCallers {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		work.Go(func() { calls[n] = callSteadily(ctx, t, instances, random, n, ids) })
	}

	var used []int64
	for ticker := time.NewTicker(lasts / 60); ctx.Err() == nil; {
		select {
		case <-ticker.C:
			used = append(used, anonymousMemory(t, p.current().cmd.Process.Pid))
		case <-ctx.Done():
			ticker.Stop()
		}
	}
	info, err := instances.GetServerInfo(t.Context(), &instancedv1.GetServerInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	work.Wait()
	total := 0
	for _, n := range calls {
		total += n
	}
	quarters := make([]int64, 0, 4)
	for quarter := range slices.Chunk(used, (len(used)+3)/4) {
		sum := int64(0)
		for _, n := range quarter {
			sum += n
		}
		quarters = append(quarters, sum/int64(len(quarter)))
	}
	t.Logf("%d calls in %v; memory of the quarters %d MiB, at most %d MiB; in the end %v",
		total, lasts, mebibytes(quarters), slices.Max(used)>>20, info.GetMemory())
	if third, last := quarters[2], quarters[3]; last > third+third/10 {
		t.Errorf("memory grows: %d MiB in the third quarter, %d MiB in the last one", third>>20, last>>20)
	}
	if peak := slices.Max(used); peak > flatMemory {
		t.Errorf("the process had %d MiB, want at most %d MiB", peak>>20, flatMemory>>20)
	}
	p.terminate()
}

// callSteadily starts, stops, describes and awaits instances until ctx is done, some of them
// with client tokens, which are refused once there are too many. It returns how many calls
// there were.
func callSteadily(ctx context.Context, t *testing.T, instances instancedv1.InstanceServiceClient, random *rand.Rand, caller int, ids []string) (calls int) {
	l := &load{}
	for ; ; calls++ {
		select {
		case <-time.After(rand.N(2 * flatPause)):
		case <-ctx.Done():
			return calls
		}
		request := fmt.Sprintf("steady-%d-%d", caller, calls)
		ctx := metadata.AppendToOutgoingContext(ctx, "instanced-principal", fmt.Sprintf("caller-%d", caller), "request-id", request)
		from := random.IntN(len(ids) - 20)
		some, token := ids[from:from+1+random.IntN(20)*random.IntN(2)], ""
		if random.IntN(10) == 0 {
			token = request
		}
		var err error
		switch random.IntN(10) {
		case 0:
			_, err = instances.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{PageSize: 100})
		case 1:
			_, err = instances.ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: some, PageSize: 100})
		case 2, 3, 4, 5:
			_, err = instances.StartInstances(ctx, &instancedv1.StartInstancesRequest{
				InstanceIds: some, ClientToken: token, FailureMode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
			})
		default:
			_, err = instances.StopInstances(ctx, &instancedv1.StopInstancesRequest{
				InstanceIds: some, ClientToken: token, FailureMode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
			})
		}
		if err != nil && !l.mayHappen(err) {
			t.Errorf("%s: %v", request, err)
		}
	}
}

// anonymousMemory returns the memory of a process that does not belong to a file, in bytes.
func anonymousMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("the system does not say how much memory a process has")
	return 0
}

func mebibytes(all []int64) (out []int64) {
	for _, n := range all {
		out = append(out, n>>20)
	}
	return out
}
