package journal

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// minToOpen is the free space that etcd needs in order to open an existing journal: it
	// allocates a file of 64 MB, and ends the process when it cannot. That may leave less than
	// the floor, and then the journal is only read.
	minToOpen = 160 << 20
	// minToCreate is the free space that a new journal needs: two such files, and what is
	// reserved for the database, after which the floor is still free and changes are accepted.
	minToCreate = diskFloor + 2*64<<20 + databaseGrowth + reserved
	// databaseGrowth is how much etcd's database grows at a time.
	databaseGrowth = 16 << 20
	// diskFloor is how much space is always left for what etcd has begun, and for the
	// files of 64 MiB that it allocates ahead.
	diskFloor = 128 << 20
	// scarce is the free space below which space is reserved for etcd's database, also
	// when changes are refused only at the floor.
	scarce = 2 * diskFloor
	// checkAge and floorAge are how old a measurement of the free space may be: for
	// those who ask before they change anything, and for those who write.
	checkAge, floorAge = time.Second, 10 * time.Millisecond
	// calmFor is how long there has to be just enough space again until that is told.
	calmFor = 5 * time.Second
	// reserved is how much of the file system is set aside for the database of etcd
	// when space becomes scarce, and reserveInterval how often: it commits what it has
	// applied a tenth of a second later.
	reserved, reserveInterval = 32 << 20, 100 * time.Millisecond
)

// disk watches the space that is free where the log is. A nil disk, that of an external
// etcd, watches nothing.
type disk struct {
	path string
	// minFree is the free space, in bytes, below which changes are refused; never less than
	// the floor.
	minFree int64
	// floor is the free space below which etcd is given nothing to write: it ends the
	// process when the disk is full.
	floor atomic.Int64
	// statfs returns the bytes that are free on the file system of a path.
	statfs func(path string) (int64, error)
	log    *slog.Logger

	// database is the file that etcd must be able to write.
	database string

	measured atomic.Pointer[measurement]
	// mu is held by whoever measures, and guards what follows. When low, it was told
	// that there is too little space, and not yet that there is enough again.
	mu         sync.Mutex
	low        bool
	lowAt      time.Time // when there was too little last
	reservedAt time.Time
}

// measurement is what the file system said.
type measurement struct {
	at   time.Time
	free int64
	err  error
}

func newDisk(path string, minFree int64, statfs func(string) (int64, error), log *slog.Logger) *disk {
	d := &disk{path: path, minFree: max(minFree, diskFloor), statfs: statfs, log: log}
	d.database = filepath.Join(path, "etcd", "member", "snap", "db")
	d.floor.Store(diskFloor)
	return d
}

// measure returns how much space is free, or was at most that long ago.
func (d *disk) measure(age time.Duration) *measurement {
	fresh := func() *measurement {
		if m := d.measured.Load(); m != nil && time.Since(m.at) < age {
			return m
		}
		return nil
	}
	if m := fresh(); m != nil {
		return m
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := fresh(); m != nil {
		return m
	}
	m := &measurement{at: time.Now()}
	if m.free, m.err = d.statfs(d.path); m.err == nil {
		d.tellLocked(m)
		if (d.low || m.free < scarce) && m.at.Sub(d.reservedAt) >= reserveInterval {
			d.reservedAt = m.at
			d.reserve()
		}
	}
	d.measured.Store(m)
	return m
}

// tellLocked logs when space becomes scarce, and when it no longer is. Both are warnings, so that
// whoever sees the one sees the other.
func (d *disk) tellLocked(m *measurement) {
	attrs := []any{slog.String("dir", d.path), slog.Int64("free_bytes", m.free), slog.Int64("min_free_bytes", d.minFree)}
	if m.free < d.minFree {
		d.lowAt = m.at
		if !d.low {
			d.low = true
			d.log.Warn("the disk is nearly full; changes are refused until there is space again", attrs...)
		}
		return
	}
	// Not each time that it crosses the line.
	if d.low && (m.free >= d.minFree+d.minFree/16 || m.at.Sub(d.lowAt) >= calmFor) {
		d.low = false
		d.log.Warn("the disk has enough free space again; changes are accepted", attrs...)
	}
}

// reserve takes space for the database beyond its end and in its holes, so that
// whoever else fills the disk cannot take what etcd needs to commit what it has
// begun. It is a precaution, which not every file system can take.
func (d *disk) reserve() {
	f, err := os.OpenFile(d.database, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()+reserved)
	}
}

// check returns an error of [instance.ReasonJournalFull] when too little space is free to begin a
// change. It asks the file system at most once a second.
func (d *disk) check() error {
	if d == nil {
		return nil
	}
	m := d.measure(checkAge)
	switch {
	case m.err != nil:
		return errUnavailable("the free disk space cannot be determined", m.err)
	case m.free < d.minFree:
		return d.errFull(m.free, d.minFree)
	}
	return nil
}

// checkFloor returns an error of [instance.ReasonJournalFull] when so little space is free that etcd
// must not be given anything to write.
func (d *disk) checkFloor() *instance.Error {
	if d == nil {
		return nil
	}
	if m := d.measure(floorAge); m.err == nil && m.free < d.floor.Load() {
		return d.errFull(m.free, d.floor.Load())
	}
	return nil
}

// checkFloorAnd is checkFloor for that many bytes more.
func (d *disk) checkFloorAnd(bytes int64) error {
	if d == nil {
		return nil
	}
	if m := d.measure(floorAge); m.err == nil && m.free < d.floor.Load()+bytes {
		return d.errFull(m.free, d.floor.Load()+bytes)
	}
	return nil
}

func (d *disk) errFull(free, minFree int64) *instance.Error {
	return errFull(fmt.Sprintf("%s has %d MiB of free disk space; at least %d MiB are needed",
		d.path, free>>20, minFree>>20))
}

// start refuses to start with so little space that etcd would not survive it or, in a new
// journal, could not record anything.
func (d *disk) start(isNew bool) error {
	if d == nil {
		return nil
	}
	free, err := d.statfs(d.path)
	if err != nil {
		return fmt.Errorf("the free disk space of the data directory %s cannot be determined: %w", d.path, reason(err))
	}
	needed, purpose := int64(minToOpen), "open the journal there"
	if isNew {
		needed, purpose = minToCreate, "create a journal there"
	}
	if free < needed {
		return fmt.Errorf("the data directory %s has %d MiB of free disk space; at least %d MiB are needed to %s",
			d.path, free>>20, needed>>20, purpose)
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
