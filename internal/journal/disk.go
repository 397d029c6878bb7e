package journal

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// leastToStart is the free space below which etcd is not started at all: it
// allocates files of 64 MiB, and ends the process when it cannot.
const leastToStart = 160 << 20

// disk watches the space that is free where the log is. A nil disk watches
// nothing.
type disk struct {
	path string
	// least is the free space, in bytes, below which nothing is written.
	least int64
	// statfs returns the bytes that are free on the file system of a path.
	statfs func(path string) (int64, error)

	mu        sync.Mutex
	checkedAt time.Time
	err       error
}

// check returns an error of [ReasonFull] when too little space is free. It asks
// the file system at most once a second.
func (d *disk) check() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.checkedAt) >= time.Second {
		d.checkedAt, d.err = now, nil
		free, err := d.statfs(d.path)
		switch {
		case err != nil:
			d.err = errUnavailable("the free disk space cannot be told", err)
		case free < d.least:
			d.err = errFull(fmt.Sprintf("%s has %d MiB of free disk space, and nothing is written below %d MiB",
				d.path, free>>20, d.least>>20))
		}
	}
	return d.err
}

// start refuses to start with so little space that etcd would not survive it.
func (d *disk) start() error {
	if d == nil {
		return nil
	}
	least := min(d.least, leastToStart)
	free, err := d.statfs(d.path)
	if err != nil {
		return fmt.Errorf("the free disk space of the data directory %s cannot be told: %w", d.path, reason(err))
	}
	if free < least {
		return fmt.Errorf("the data directory %s has %d MiB of free disk space; at least %d MiB are needed to start",
			d.path, free>>20, least>>20)
	}
	return nil
}

func freeSpace(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}
