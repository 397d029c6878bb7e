package server_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestAClientThatCancelsRapidlyPaysForItselfAlone has an ordinary client open subscriptions
// and start instances, and cancel each of these calls at once. It runs alone, since it
// looks at the memory and the goroutines of the process.
func TestAClientThatCancelsRapidlyPaysForItselfAlone(t *testing.T) {
	const watches, starts = 800, 200
	srv := servertest.New(t, servertest.Options{Fleet: fleet(starts)})
	conn := srv.Dial()
	client := instancedv1.NewInstanceServiceClient(conn)
	if _, err := client.GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	goroutines, memory := runtime.NumGoroutine(), memoryInUse()
	start := func(ctx context.Context, n int) (*instancedv1.StartInstancesResponse, error) {
		return client.StartInstances(as(ctx, "rapid", id(n)), &instancedv1.StartInstancesRequest{InstanceIds: ids(starts)[n : n+1], ClientToken: id(n)})
	}

	begun := time.Now()
	var rapid sync.WaitGroup
	rapid.Go(func() {
		for range watches {
			ctx, cancel := context.WithCancel(as(patient(t), "rapid", "r"))
			stream, err := client.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true})
			if err == nil {
				_, err = stream.Recv()
			}
			cancel()
			if err != nil {
				t.Errorf("a subscription: %v", err)
			}
		}
	})
	succeeded := make([]bool, starts)
	rapid.Go(func() {
		var calls sync.WaitGroup
		defer calls.Wait()
		for n := range starts {
			ctx, cancel := context.WithCancel(patient(t))
			calls.Go(func() {
				_, err := start(ctx, n)
				if succeeded[n] = err == nil; err != nil {
					wantCode(t, err, codes.Canceled)
				}
			})
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			cancel()
		}
	})
	paid := make(chan time.Duration)
	go func() {
		rapid.Wait()
		// It is read after all that the connection has sent before.
		if _, err := client.GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Errorf("the client, afterwards: %v", err)
		}
		paid <- time.Since(begun)
	}()
	others := 0
	var took time.Duration
	for took == 0 {
		select {
		case took = <-paid:
		default:
			if _, err := srv.Instances().DescribeInstances(as(patient(t), "alice", "r"), &instancedv1.DescribeInstancesRequest{}); err != nil {
				t.Fatalf("another caller: %v", err)
			}
			others++
		}
	}
	// 250 cancellations are free of charge, and 50 a second; the others cost 1 ms each.
	const minPaid = watches*time.Millisecond*19/20 - 350*time.Millisecond
	if took < minPaid {
		t.Errorf("%d cancelled calls were read within %v, want at least %v", watches, took, minPaid)
	}
	if others < 10 {
		t.Errorf("another caller was answered %d times within %v", others, took)
	}

	eventually(t, "all its subscriptions have ended", func() bool { return memoryUse(t, srv).GetStreams() == 0 })
	eventually(t, "its goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines+20 })
	eventually(t, "its memory is free again", func() bool { return memoryInUse() <= memory+8<<20 })

	happened := wantStartsWholeOrNotAtAll(t, srv, succeeded)
	t.Logf("%d of %d cancelled starts happened; it took %v, with %d calls of another caller", happened, starts, took, others)
	for n := range starts {
		resp, err := start(patient(t), n)
		if err != nil {
			t.Fatalf("a retry: %v", err)
		}
		if s := resp.GetStartingInstances()[0]; s.GetPreviousState().GetName() != stopped || s.GetCurrentState().GetName() != pending {
			t.Errorf("a retry of a cancelled start is answered %v", s)
		}
	}
	for n := range succeeded {
		succeeded[n] = true
	}
	wantStartsWholeOrNotAtAll(t, srv, succeeded)
}

// wantStartsWholeOrNotAtAll checks that each instance was started once and that this is
// recorded with its cause, or that it was not started at all, which those that are said to
// have succeeded were. It returns how many were.
func wantStartsWholeOrNotAtAll(t *testing.T, srv *servertest.Server, succeeded []bool) (happened int) {
	t.Helper()
	all := ids(len(succeeded))
	eventually(t, "what is recorded is what the backend has", func() bool {
		actual, err := srv.BackendStates(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{})
		if err != nil {
			t.Fatal(status.Convert(err))
		}
		for _, i := range resp.GetInstances() {
			if s := i.GetState().GetName(); s != actual[i.GetInstanceId()] || s == pending {
				return false
			}
		}
		return true
	})
	started := make(map[string]int)
	for _, e := range history(t, srv, all, "") {
		if e.GetType() != instancedv1.EventType_EVENT_TYPE_STATE_CHANGED || e.GetInstance().GetState().GetName() != pending {
			continue
		}
		instance := e.GetInstance().GetInstanceId()
		if c := e.GetCause(); c.GetPrincipal() != "rapid" || c.GetRequestId() != instance {
			t.Errorf("the start of %s is recorded with the cause %v", instance, c)
		}
		started[instance]++
	}
	for n, ok := range succeeded {
		switch times := started[all[n]]; {
		case times > 1, times == 0 && ok:
			t.Errorf("%s was started %d times; its caller was told of success: %t", all[n], times, ok)
		case times == 1:
			happened++
		}
	}
	return happened
}
