package journal

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
)

// BenchmarkUpdate is many callers, each with one change of about 600 bytes, fsynced
// before it returns. BenchmarkCeiling is the same bytes put straight into etcd, by
// one caller that has them at hand. Set TMPDIR to a real disk.
func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 64, 256, 1024} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			j, term := own(b, Config{DataDir: b.TempDir(), MinFreeDisk: -1})
			for n := range writers {
				set(b, term, id(n), instance.StateStopped)
			}
			before := j.Stats()
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for n := range writers {
				wg.Go(func() {
					ctx, cancel := context.WithCancel(b.Context()) // as each request has its own
					defer cancel()
					changes := [2]instance.Change{change(id(n), instance.StatePending), change(id(n), instance.StateStopped)}
					for turn := 0; left.Add(-1) >= 0; turn++ {
						c := changes[turn%2]
						_, err := term.Update(ctx, func(tx *Tx) error {
							tx.Append(c)
							return nil
						})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := j.Stats()
			b.ReportMetric(float64(b.N)/float64(after.Batches-before.Batches), "changes/batch")
			b.ReportMetric(float64(after.Bytes-before.Bytes)/float64(b.N), "log-bytes/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// BenchmarkCeiling is described at BenchmarkUpdate.
func BenchmarkCeiling(b *testing.B) {
	for _, changes := range []int{1, 128, 256, 512, 1024} {
		b.Run(fmt.Sprintf("changes=%d", changes), func(b *testing.B) {
			j := openJournal(b, Config{DataDir: b.TempDir(), MinFreeDisk: -1})
			value := string(make([]byte, 640*changes))
			seq := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				seq++
				if _, err := j.store.client.Txn(b.Context()).Then(clientv3.OpPut(fmt.Sprintf("/bench/%020d", seq), value)).Commit(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(changes)*float64(b.N)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// BenchmarkRead is one reader that reads a log of batches of many changes, from
// the ring, and from pages of the log.
func BenchmarkRead(b *testing.B) {
	for name, ring := range map[string]int64{"ring": 1 << 30, "log": 1} {
		for _, changes := range []int{1, 128} {
			b.Run(fmt.Sprintf("from=%s/changes=%d", name, changes), func(b *testing.B) {
				j, term := own(b, Config{DataDir: b.TempDir(), MinFreeDisk: -1, RingBytes: ring})
				from := j.Head()
				fillLog(b, term, 16<<20, changes)
				batches := 0
				b.ReportAllocs()
				for b.Loop() {
					for r := j.Read(from); r.Position() != j.Head(); batches++ {
						if _, err := r.Next(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(batches)/b.Elapsed().Seconds(), "batches/s")
				b.ReportMetric(float64(batches*changes)/b.Elapsed().Seconds(), "changes/s")
			})
		}
	}
}

// BenchmarkOpen is a start on a history of that many bytes, whose checkpoint is up
// to date, and the beginning of a term.
func BenchmarkOpen(b *testing.B) {
	for _, history := range []int{0, 64 << 20, 1 << 30} {
		b.Run(fmt.Sprintf("history=%dMiB", history>>20), func(b *testing.B) {
			config := Config{DataDir: b.TempDir(), MinFreeDisk: -1, MaxBytes: 2 << 30}
			j, err := Open(b.Context(), config)
			if err != nil {
				b.Fatal(err)
			}
			fillLog(b, campaign(b, j), history, 128)
			closeJournal(b, j)
			for b.Loop() {
				if j, err = Open(b.Context(), config); err != nil {
					b.Fatal(err)
				}
				campaign(b, j)
				b.StopTimer()
				closeJournal(b, j)
				b.StartTimer()
			}
		})
	}
}

// fillLog records changes in batches of so many until the log has grown by size. Part of
// each cannot be packed.
func fillLog(b *testing.B, term *Term, size, changes int) {
	b.Helper()
	various := make([]string, 4096)
	for i := range various {
		various[i] = noise(128)
	}
	j := term.journal
	for target, turn := j.Stats().Bytes+uint64(size), 0; j.Stats().Bytes < target; turn++ {
		_, err := term.Update(b.Context(), func(tx *Tx) error {
			for n := range changes {
				c := change(id(n), instance.States()[turn%6])
				c.After.Tags["noise"] = various[(turn*changes+n)%len(various)]
				tx.Append(c)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
