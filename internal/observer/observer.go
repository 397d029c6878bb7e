package observer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Config is what an [Observer] needs, and what may be tuned: a zero duration means its
// default.
type Config struct {
	Journal *journal.Journal
	Backend Backend
	Logger  *slog.Logger
	// Metrics is where metrics are registered, once for each registerer; nil for nowhere.
	Metrics prometheus.Registerer
	// ReconcileInterval is the interval between full comparisons with the backend; default
	// 5 minutes.
	ReconcileInterval time.Duration
	// PollInterval is how soon an instance in transition is described when no notice of it
	// came; it doubles each time, up to eight times as long. Default 2 seconds.
	PollInterval time.Duration
	// CallTimeout is how long a call to the backend may take effect after it was sent: a
	// new owner compares everything again that long after it took over, to see what the
	// earlier owner sent last. Default [instance.DefaultCallTimeout].
	CallTimeout time.Duration
	// Consistency is how long the backend may go on describing what was before a change.
	// Within it, such a description counts as stale. Default 1 minute.
	Consistency time.Duration
}

// Observer records what commands, notices and descriptions say of instances. All methods are
// safe for concurrent use, and return errors of type [instance.Error] or the error of ctx.
type Observer struct {
	journal *journal.Journal
	backend Backend
	log     *slog.Logger
	cfg     Config
	metrics *metrics

	tracker      *tracker
	refresher    *refresher
	recentStates recentStates
	unreadable   unreadable

	// term is the term that is served; nil for none. It is set with termMu held, and
	// termChanged is closed and replaced then.
	term        atomic.Pointer[journal.Term]
	termMu      sync.Mutex
	termChanged chan struct{}

	reconciled     contact
	backendContact contact
	polling        instance.Heartbeat
	ready          chan struct{}
	markReady      func()

	// previousTerm is the last term of this process; it belongs to the goroutine of Serve.
	previousTerm previousTerm
}

// previousTerm is a term that this process served: the epoch that it wrote, and the end of
// the log before it.
type previousTerm struct {
	epoch uint64
	from  journal.Position
}

// New returns an observer. It does nothing before [Observer.Serve].
func New(cfg Config) *Observer {
	setDefault(&cfg.ReconcileInterval, 5*time.Minute)
	setDefault(&cfg.PollInterval, 2*time.Second)
	setDefault(&cfg.CallTimeout, instance.DefaultCallTimeout)
	setDefault(&cfg.Consistency, time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	o := &Observer{
		journal:      cfg.Journal,
		backend:      cfg.Backend,
		log:          cfg.Logger,
		cfg:          cfg,
		metrics:      newMetrics(cfg.Metrics),
		tracker:      newTracker(),
		recentStates: newRecentStates(cfg.Consistency),
		ready:        make(chan struct{}),
		termChanged:  make(chan struct{}),
	}
	o.markReady = sync.OnceFunc(func() { close(o.ready) })
	o.refresher = newRefresher(o)
	o.registerState(cfg.Metrics)
	return o
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Serve does the owner's work of a term: it consumes the backend's notices, describes what
// is to be described, polls and reconciles. It returns nil when the term or ctx has ended and
// all of that with it, and an error when the backend cannot be restored from the journal.
// Only one call may run at a time.
func (o *Observer) Serve(ctx context.Context, term *journal.Term) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := o.restore(term); err != nil {
		return fmt.Errorf("cannot restore the backend from the journal: %w", err)
	}
	o.refresher.open()
	o.setTerm(term)
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-term.Done():
		case <-ctx.Done():
		}
		o.setTerm(nil)
		cancel()
	})
	work.Go(func() { o.refresher.run(ctx) })
	work.Go(func() { o.consumeNotices(ctx, term) })
	work.Go(func() { o.poll(ctx) })
	work.Go(func() { o.reconcileRegularly(ctx) })
	work.Wait()
	return nil
}

func (o *Observer) setTerm(term *journal.Term) {
	o.termMu.Lock()
	defer o.termMu.Unlock()
	o.term.Store(term)
	close(o.termChanged)
	o.termChanged = make(chan struct{})
}

// restore gives the backend what the journal knows, unless no other process has written to
// the journal since the previous term of this one: then the backend knows more than the
// journal, which may have missed the end of that term, and is compared with it as usual.
func (o *Observer) restore(term *journal.Term) error {
	snapshot := o.journal.Snapshot()
	previous := o.previousTerm
	o.previousTerm = previousTerm{epoch: term.Epoch(), from: snapshot.Position}
	if previous != (previousTerm{}) && (snapshot.Position == previous.from || snapshot.Position.Epoch == previous.epoch) {
		return nil
	}
	known := make([]*instance.Instance, len(snapshot.Records))
	for i, r := range snapshot.Records {
		known[i] = r.Instance
	}
	o.tracker.dropUnresolved()
	return o.backend.Restore(known)
}

// Ready is closed once requests can be answered: after the first full comparison with the
// backend, when that fails although the journal knows of instances, or when this process
// turns out not to be the owner (see [Observer.MarkReady]).
func (o *Observer) Ready() <-chan struct{} { return o.ready }

// MarkReady closes [Observer.Ready]: another process observes the backend.
func (o *Observer) MarkReady() { o.markReady() }

// LastReconciled is when this process last began a full comparison with the backend that
// succeeded; zero before the first one.
func (o *Observer) LastReconciled() time.Time { return o.reconciled.get().Succeeded }

// Term returns the term that is being served, or an error of [instance.ReasonNotOwner] that
// says who commands the backend.
func (o *Observer) Term() (*journal.Term, error) {
	if term := o.term.Load(); term != nil {
		return term, nil
	}
	address, mine := o.journal.Owner()
	e := &instance.Error{Kind: instance.KindUnavailable, Reason: instance.ReasonNotOwner, RetryAfter: time.Second}
	switch {
	case mine:
		e.Message = "this process is taking over the backend; try again"
	case address == "":
		e.Message = "no process owns the backend at the moment; nothing was changed"
	default:
		e.Message = fmt.Sprintf("commands are carried out by the owner of the backend, %s; nothing was changed", address)
		e.Metadata = map[string]string{"owner": address}
	}
	return nil, e
}

// ErrTermEnded is for callers who wait for this process when it stops commanding the backend.
func ErrTermEnded() error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonNotOwner,
		Message:    "this process no longer commands the backend; nothing was changed",
		RetryAfter: time.Second,
	}
}
