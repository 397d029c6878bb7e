package soak_test

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// fullDisk fills the disk that the data directory is on: first to below what has to be
// free for commands, then altogether.
func fullDisk(r round) {
	dir := r.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=600m"); err != nil {
		r.Skipf("SKIPPED, needs the right to mount: %v", err)
	}
	r.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			r.Errorf("unmount: %v", err)
		}
	})
	p := newProcess(r.T, append(r.flags(), "--data-dir", filepath.Join(dir, "data"), "--min-free-disk", "200MiB")...)
	p.start()
	p.ready()
	s := r.begin(p.address)
	for range r.times(1, 4) {
		s.served(20)
		s.told("")
		r.fill(dir, 150<<20)
		s.refuses(500*time.Millisecond, codes.ResourceExhausted, "JOURNAL_FULL")
		s.told("JOURNAL_FULL")
		r.fill(dir, 0)
		r.summary.count("full disks", 1)
		// etcd commits every second, and must survive it.
		s.refuses(1500*time.Millisecond, codes.ResourceExhausted, "JOURNAL_FULL")
		s.told("JOURNAL_FULL")
		s.health(grpc_health_v1.HealthCheckResponse_SERVING)
		if err := os.Remove(filepath.Join(dir, "hog")); err != nil {
			r.Fatal(err)
		}
		freed := time.Now()
		s.served(1)
		r.summary.took("from free space to callers being served", time.Since(freed))
		s.told("")
	}
	s.finish()
	s.uninterrupted()
}

// fill takes space until only so much is free.
func (r round) fill(dir string, free int64) {
	r.Helper()
	hog, err := os.OpenFile(filepath.Join(dir, "hog"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = hog.Close() }()
	for chunk := make([]byte, 1<<20); ; {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			r.Fatal(err)
		}
		if int64(s.Bavail)*s.Bsize <= free {
			return
		}
		if _, err := hog.Write(chunk); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			r.Fatal(err)
		}
	}
}
