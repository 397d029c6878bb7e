package observer

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxPollSilence is how long the loop that polls instances may take for one round, beside the
// poll interval. It never waits for the backend or the journal.
const maxPollSilence = 30 * time.Second

// contact is when something last succeeded, and since when it has been failing. It is safe for
// concurrent use.
type contact struct {
	mu    sync.Mutex
	state Contact // guarded by mu
}

// Contact is when something last succeeded, and since when it has been failing.
type Contact struct {
	// Succeeded is zero if it never did.
	Succeeded time.Time
	// FailingSince is zero, and Err nil, unless the last attempt failed.
	FailingSince time.Time
	Err          error
}

func (c *contact) succeeded(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = Contact{Succeeded: at}
}

func (c *contact) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.FailingSince.IsZero() {
		c.state.FailingSince = time.Now()
	}
	c.state.Err = err
}

func (c *contact) get() Contact {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// noteBackend notes whether a call reached the backend, by its error. A rejection by the backend
// did, and of other errors most say nothing about that. It is not to be called for a call that
// its caller ended.
func (o *Observer) noteBackend(err error) {
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case err == nil, ok && e.Code != "":
		o.backendContact.succeeded(time.Now())
	case ok && (e.Reason == instance.ReasonBackendUnavailable || e.Reason == instance.ReasonAnswerLost):
		o.backendContact.failed(err)
	}
}

// BackendContact is when the backend last answered this process, whether with success or not.
func (o *Observer) BackendContact() Contact { return o.backendContact.get() }

// Reconciled is when this process last began a full comparison with the backend that
// succeeded, and whether they fail now.
func (o *Observer) Reconciled() Contact { return o.reconciled.get() }

// ReconcileInterval is the interval between full comparisons with the backend.
func (o *Observer) ReconcileInterval() time.Duration { return o.cfg.ReconcileInterval }

// Commanding reports whether this process commands the backend. The channel is closed when that
// has changed.
func (o *Observer) Commanding() (now bool, changed <-chan struct{}) {
	o.termMu.Lock()
	defer o.termMu.Unlock()
	return o.term.Load() != nil, o.termChanged
}

// Alive returns an error if a loop of the observer is stuck. That the backend or the journal
// does not respond is none. It takes the observer's locks, so it does not return when one of
// them is held forever.
func (o *Observer) Alive() error {
	o.tracker.mu.Lock()
	o.tracker.mu.Unlock() //nolint:staticcheck // that it can be taken is all there is to know
	o.refresher.mu.Lock()
	o.refresher.mu.Unlock() //nolint:staticcheck // likewise
	if silence := o.polling.Silence(); silence > o.cfg.PollInterval+maxPollSilence {
		return fmt.Errorf("the loop that polls instances has been stuck for %v", silence.Round(time.Second))
	}
	return nil
}
