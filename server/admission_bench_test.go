package server

import (
	"log/slog"
	"testing"
)

// BenchmarkAdmission is what a call costs to be let in and out again.
func BenchmarkAdmission(b *testing.B) {
	a := newAdmission(slog.New(slog.DiscardHandler), DefaultMaxRequests, DefaultMaxStreams, DefaultMaxConnections)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := a.connect(nil)
		if err != nil {
			b.Error(err)
		}
		for pb.Next() {
			t, err := a.admit("alice", conn)
			if err != nil {
				b.Error(err)
				return
			}
			t.leave()
		}
	})
}
