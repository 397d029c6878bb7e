package server_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// BenchmarkGrowth is what each instance of a call costs, for calls of different sizes and
// fleets of different sizes: ns/instance is not to grow with either.
func BenchmarkGrowth(b *testing.B) {
	for _, fleet := range []int32{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("fleet=%d", fleet), func(b *testing.B) {
			srv, address := benchServer(b)
			client := clientsOf(connect(b, address))[0]
			var ids []string
			for rest := fleet; rest > 0; rest -= min(rest, 10_000) {
				ids = append(ids, create(b, srv, min(rest, 10_000))...)
			}
			slices.Sort(ids)
			for part := range slices.Chunk(ids, 1000) {
				if _, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: part}); err != nil {
					b.Fatal(err)
				}
			}
			for _, n := range []int{1, 10, 100, 1000} {
				benchmarkGrowth(b, client, ids, n)
			}
		})
	}
}

func benchmarkGrowth(b *testing.B, client instancedv1.InstanceServiceClient, ids []string, n int) {
	next := 0
	for name, call := range map[string]func(ids []string) error{
		// They are found pending.
		"start": func(ids []string) error {
			_, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: ids})
			return err
		},
		"describe": func(ids []string) error {
			_, err := client.DescribeInstances(b.Context(), &instancedv1.DescribeInstancesRequest{
				Filter: &instancedv1.InstanceFilter{InstanceIds: ids}, PageSize: 1000,
			})
			return err
		},
		"wait": func(ids []string) error {
			_, err := client.WaitInstances(b.Context(), &instancedv1.WaitInstancesRequest{
				InstanceIds: ids, States: []instancedv1.InstanceStateName{pending, stopped},
			})
			return err
		},
	} {
		b.Run(fmt.Sprintf("%s/instances=%d", name, n), func(b *testing.B) {
			b.ReportAllocs()
			begun := time.Now()
			for b.Loop() {
				if next+n > len(ids) {
					next = 0
				}
				if err := call(ids[next : next+n]); err != nil {
					b.Fatal(err)
				}
				next += n
			}
			b.ReportMetric(float64(time.Since(begun).Nanoseconds())/float64(b.N*n), "ns/instance")
		})
	}
}
