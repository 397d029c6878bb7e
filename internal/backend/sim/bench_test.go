package sim_test

import (
	"testing"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// BenchmarkExecute starts and stops one instance of a large fleet by turns.
func BenchmarkExecute(b *testing.B) {
	backend := open(b, sim.Config{})
	var ids []instance.ID
	for range 10 {
		ids = append(ids, create(b, backend, sim.Spec{Count: 10000, Tags: map[string]string{"Name": "bench"}})...)
	}
	go func() {
		for n, err := range backend.Notices(b.Context()) {
			if err != nil {
				b.Error(err)
			}
			n.Ack()
		}
	}()
	b.ReportAllocs()
	verbs := []instance.Verb{instance.VerbStart, instance.VerbStop}
	n := 0
	for b.Loop() {
		if _, err := backend.Execute(b.Context(), instance.Command{Verb: verbs[n/len(ids)%2], IDs: ids[n%len(ids) : n%len(ids)+1]}); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
