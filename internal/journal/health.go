package journal

import (
	"fmt"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxLoopSilence is how long a loop of the owner may take for one round. None of them waits
// longer than [attemptTimeout] for etcd at a time, whether or not etcd responds.
const maxLoopSilence = 30 * time.Second

// LastContact is when etcd last responded: to the writer, to the renewal of the lease, to
// maintenance, or to a follower.
func (j *Journal) LastContact() time.Time { return *j.lastContact.Load() }

// Alive returns an error if a loop of the journal is stuck. That etcd does not respond, or that
// the disk is full, is none. It takes the journal's locks, so it does not return when one of
// them is held forever.
func (j *Journal) Alive() error {
	j.view.tip()
	t := j.currentTerm()
	if t == nil {
		return nil
	}
	for _, loop := range []struct {
		what  string
		heart *instance.Heartbeat
	}{
		{"the journal's writer", &t.writer.heart},
		{"the renewal of the journal's lease", &t.renewing},
	} {
		if silence := loop.heart.Silence(); silence > maxLoopSilence {
			return fmt.Errorf("%s has been stuck for %v", loop.what, silence.Round(time.Second))
		}
	}
	return nil
}

// DiskSpace is how much space is free on the file system of the embedded journal.
type DiskSpace struct {
	At time.Time
	// Free is how many bytes are free, and MinFree how many there must be for changes to be
	// accepted.
	Free, MinFree int64
}

// Disk returns the free disk space, which it measures at most once a second; ok is false for an
// external etcd. The error says that there is too little, or that it cannot be determined.
func (j *Journal) Disk() (space DiskSpace, ok bool, err error) {
	if j.disk == nil {
		return DiskSpace{}, false, nil
	}
	m := j.disk.measure(checkAge)
	return DiskSpace{At: m.at, Free: m.free, MinFree: j.disk.minFree}, true, j.disk.check()
}
