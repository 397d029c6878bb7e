package server_test

import (
	"fmt"
	"sync"
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// BenchmarkOverlappingLargeCalls compares callers who start the same instances at the same
// time with one caller who makes as many calls, one after another, taking turns within one
// run. Of each turn the first call starts the instances and the others find them pending.
func BenchmarkOverlappingLargeCalls(b *testing.B) {
	for _, callers := range []int{4, 16} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { benchmarkOverlapping(b, callers) })
	}
}

func benchmarkOverlapping(b *testing.B, callers int) {
	const instances, calls = 1000, 32
	srv, address := benchServer(b)
	clients := clientsOf(connect(b, address))
	start := func(client instancedv1.InstanceServiceClient, ids []string, times int) {
		for range times {
			if _, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: ids}); err != nil {
				b.Error(err)
				return
			}
		}
	}
	var overlapping, oneByOne spent
	for b.Loop() {
		b.StopTimer()
		first, second := create(b, srv, instances), create(b, srv, instances)
		b.StartTimer()
		oneByOne.on(func() { start(clients[0], first, calls) })
		overlapping.on(func() {
			var working sync.WaitGroup
			for caller := range callers {
				working.Go(func() { start(clients[caller%len(clients)], second, calls/callers) })
			}
			working.Wait()
		})
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(overlapping.wall)/float64(oneByOne.wall), "ratio")
	b.ReportMetric(float64(overlapping.cpu)/float64(oneByOne.cpu), "cpu-ratio")
	b.ReportMetric(overlapping.wall.Seconds()/float64(b.N), "s-overlapping")
	b.ReportMetric(oneByOne.wall.Seconds()/float64(b.N), "s-one-by-one")
}
