package lifecycle

import (
	"errors"
	"time"

	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/observer"
)

// Contact is when something last succeeded, and since when it has been failing.
type Contact = observer.Contact

// DiskSpace is how much space is free where the journal is.
type DiskSpace = journal.DiskSpace

// Alive returns an error if a loop of the journal or of the observer is stuck; it does not
// return when one of their locks is held forever. That the journal or the backend does not
// respond is no error.
func (s *Service) Alive() error { return errors.Join(s.journal.Alive(), s.observer.Alive()) }

// JournalContact is when the journal last responded. See also [Service.Reachable].
func (s *Service) JournalContact() time.Time { return s.journal.LastContact() }

// OwnTerm describes the term in which this process takes commands: its epoch, and how long it is
// certain to last if it is not renewed, which is for ever with an embedded journal. ok is false if
// it takes none.
func (s *Service) OwnTerm() (epoch uint64, remaining time.Duration, ok bool) {
	term, err := s.observer.Term()
	if err != nil {
		return 0, 0, false
	}
	return term.Epoch(), term.Remaining(), true
}

// Disk returns the free space of the disk that the journal is on; ok is false for an external
// etcd. The error says why changes are rejected for lack of space.
func (s *Service) Disk() (space DiskSpace, ok bool, err error) { return s.journal.Disk() }

// Owner returns the address of the process that takes commands, "" if there is none or it has
// no address, and whether it is this process.
func (s *Service) Owner() (address string, mine bool) { return s.journal.Owner() }

// Writable returns why this process, as the owner, cannot record changes at the moment; nil if
// it can, or if it is not the owner.
func (s *Service) Writable() error {
	if term, err := s.observer.Term(); err == nil {
		return term.Writable()
	}
	return nil
}

// Commanding reports whether this process takes commands. The channel is closed when that has
// changed.
func (s *Service) Commanding() (now bool, changed <-chan struct{}) { return s.observer.Commanding() }

// BackendContact is when the backend last answered this process.
func (s *Service) BackendContact() Contact { return s.observer.BackendContact() }

// Reconciled is when this process last began a full comparison with the backend that
// succeeded, and whether they fail now. Interval is the time between two of them.
func (s *Service) Reconciled() (c Contact, interval time.Duration) {
	return s.observer.Reconciled(), s.observer.ReconcileInterval()
}
