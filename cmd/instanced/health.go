package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/admin"
)

// stage is how far the process has come. It is safe for concurrent use.
type stage struct {
	waitingFor atomic.Pointer[string] // nil once it has started
	draining   atomic.Bool
}

func newStage() *stage {
	s := &stage{}
	s.waitFor("the listeners")
	return s
}

// waitFor says what startup waits for; "" once it is over.
func (s *stage) waitFor(what string) {
	if what == "" {
		s.waitingFor.Store(nil)
		return
	}
	s.waitingFor.Store(&what)
}

// checks are the checks of /readyz that need no service.
func (s *stage) checks() []admin.Check {
	return []admin.Check{
		{Name: "startup", Look: func() (e admin.Evidence) {
			if what := s.waitingFor.Load(); what != nil {
				e.Err = fmt.Errorf("waiting for %s", *what)
			}
			return e
		}},
		{Name: "drain", Look: func() (e admin.Evidence) {
			if s.draining.Load() {
				e.Err = errors.New("the process is shutting down")
			}
			return e
		}},
	}
}

// liveChecks are the checks of /livez.
func liveChecks(svc *lifecycle.Service) []admin.Check {
	return []admin.Check{{Name: "loops", Look: func() admin.Evidence { return admin.Evidence{Err: svc.Alive()} }}}
}

// readyChecks are the checks of /readyz on the service. Reads and streams depend on the journal
// alone, so only its check decides. Where another process could do no better either, the others
// would take all replicas out of a balancer at once.
func readyChecks(svc *lifecycle.Service) []admin.Check {
	return []admin.Check{
		{Name: "journal", Look: func() admin.Evidence {
			return admin.Evidence{At: svc.JournalContact(), Err: sentence(svc.Reachable())}
		}},
		{Name: "writable", Informational: true, Look: func() admin.Evidence {
			if commanding, _ := svc.Commanding(); !commanding {
				return admin.Evidence{Note: ownersWork}
			}
			return admin.Evidence{At: svc.JournalContact(), Err: sentence(svc.Writable())}
		}},
		{Name: "owner", Informational: true, Look: func() admin.Evidence { return lookAtOwner(svc) }},
		{Name: "backend", Informational: true, Look: func() admin.Evidence { return lookAtBackend(svc) }},
		{Name: "reconcile", Informational: true, Look: func() admin.Evidence { return lookAtReconcile(svc) }},
		{Name: "disk", Informational: true, Look: func() admin.Evidence {
			space, ok, err := svc.Disk()
			if !ok {
				return admin.Evidence{Note: "the journal is in an external etcd"}
			}
			return admin.Evidence{At: space.At, Err: sentence(err), Note: fmt.Sprintf("%d MiB free, %d MiB needed", space.Free>>20, space.MinFree>>20)}
		}},
	}
}

// ownersWork is the note of checks that do not apply to a follower.
const ownersWork = "left to the owner"

func lookAtOwner(svc *lifecycle.Service) admin.Evidence {
	address, mine := svc.Owner()
	e := admin.Evidence{At: svc.JournalContact(), Note: address}
	switch {
	case mine:
		e.Note = "this process"
	case address == "":
		e.Err = errors.New("no process owns the journal, so no commands are taken")
	}
	return e
}

func lookAtBackend(svc *lifecycle.Service) admin.Evidence {
	contact := svc.BackendContact()
	switch commanding, _ := svc.Commanding(); {
	case !commanding:
		return admin.Evidence{Note: ownersWork}
	case contact.Err == nil && contact.Succeeded.IsZero():
		return admin.Evidence{Err: errors.New("it has not been called yet")}
	}
	return admin.Evidence{At: contact.Succeeded, Since: contact.FailingSince, Err: sentence(contact.Err)}
}

// maxReconcileDuration is how long a full comparison may take before it counts as overdue.
const maxReconcileDuration = 5 * time.Minute

func lookAtReconcile(svc *lifecycle.Service) admin.Evidence {
	contact, interval := svc.Reconciled()
	e := admin.Evidence{At: contact.Succeeded, Since: contact.FailingSince, Err: sentence(contact.Err)}
	overdue := contact.Succeeded.Add(interval + interval/10 + maxReconcileDuration)
	switch commanding, _ := svc.Commanding(); {
	case !commanding:
		return admin.Evidence{Note: ownersWork}
	case e.Err != nil:
	case contact.Succeeded.IsZero():
		e.Err = errors.New("the first one has not ended yet")
	case time.Now().After(overdue):
		e.Err, e.Since = fmt.Errorf("the last one was %v ago", time.Since(contact.Succeeded).Round(time.Second)), overdue
	}
	return e
}

// sentence returns an error as callers are told it, without what only the log says.
func sentence(err error) error {
	if e, ok := errors.AsType[*instance.Error](err); ok {
		return errors.New(e.Message)
	}
	return err
}
