package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Config is what a [Service] needs, and what may be tuned: a zero duration means its
// default.
type Config struct {
	Journal *journal.Journal
	Backend Backend
	Logger  *slog.Logger
	// ReconcileInterval is how often everything is compared with the backend; default
	// 5 minutes.
	ReconcileInterval time.Duration
	// PollInterval is how soon an instance in transition is looked at when nothing was
	// heard of it; it grows to eight times as long. Default 2 seconds.
	PollInterval time.Duration
	// CallTimeout is how long a call to the backend may take effect after it was sent: what
	// an earlier owner sent last is looked for so long after this process became the owner.
	// Default [instance.DefaultCallTimeout].
	CallTimeout time.Duration
	// Consistency is how long the backend may go on describing what was before a
	// change. Within it, such a description is not believed. Default 1 minute.
	Consistency time.Duration
}

// Service is the service layer. All methods are safe for concurrent use, and return
// errors of type [instance.Error] or those of ctx.
//
// Reads and subscriptions are served by every process that shares a journal; commands
// by its owner only.
type Service struct {
	journal *journal.Journal
	backend Backend
	log     *slog.Logger
	cfg     Config

	tracker *tracker
	looker  *looker
	past    *past
	absent  absentees
	// unreadable has the instances that the backend describes in a way that cannot be
	// understood.
	unreadable unreadable
	tokens     tokenCalls

	term           atomic.Pointer[journal.Term]
	lastReconciled atomic.Pointer[time.Time]
	ready          chan struct{}
	readyOnce      sync.Once

	// lastTerm is the last term of this process; it belongs to the goroutine of Run.
	lastTerm served
}

// served is a term: the generation that it wrote, and the end of the log before it.
type served struct {
	generation uint64
	from       journal.Position
}

// New returns a service. It does nothing before [Service.Run].
func New(cfg Config) *Service {
	if cfg.ReconcileInterval <= 0 {
		cfg.ReconcileInterval = 5 * time.Minute
	}
	if cfg.PollInterval <= 0 {
		cfg.PollInterval = 2 * time.Second
	}
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = instance.DefaultCallTimeout
	}
	if cfg.Consistency <= 0 {
		cfg.Consistency = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		journal: cfg.Journal,
		backend: cfg.Backend,
		log:     cfg.Logger,
		cfg:     cfg,
		tracker: newTracker(),
		past:    newPast(cfg.Consistency),
		ready:   make(chan struct{}),
	}
	s.looker = newLooker(s)
	s.tokens.inFlight = make(map[string]*tokenCall)
	return s
}

// Run commands and observes the backend whenever this process owns the journal, until
// ctx is done. It returns nil then, and an error when it cannot go on.
func (s *Service) Run(ctx context.Context) error {
	for {
		term, err := s.campaign(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot become the owner of the journal: %w", err)
		}
		s.log.Info("this process owns the journal and commands the backend")
		if err := s.serve(ctx, term); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		s.log.Warn("this process no longer owns the journal", "cause", term.Err())
	}
}

// campaign waits for ownership. A process that sees another one own the journal is
// ready to serve reads meanwhile.
func (s *Service) campaign(ctx context.Context) (*journal.Term, error) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			if owner, mine := s.journal.Owner(); owner != "" && !mine {
				s.becomeReady()
				return
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return s.journal.Campaign(ctx)
}

// serve does the owner's work for one term.
func (s *Service) serve(ctx context.Context, term *journal.Term) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.restore(term); err != nil {
		return fmt.Errorf("cannot restore the backend from the journal: %w", err)
	}
	s.tokens.open(ctx)
	s.looker.begin()
	s.term.Store(term)
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-term.Done():
		case <-ctx.Done():
		}
		s.term.Store(nil)
		cancel()
		s.tokens.close()
	})
	work.Go(func() { s.looker.run(ctx) })
	work.Go(func() { s.hear(ctx, term) })
	work.Go(func() { s.poll(ctx) })
	work.Go(func() { s.reconcileRegularly(ctx) })
	work.Wait()
	return nil
}

// restore gives the backend what the journal knows, unless nobody else has written to it
// since this process last did: then the backend knows more than the journal does, which
// may have missed the end of the last term, and is compared with it as ever.
func (s *Service) restore(term *journal.Term) error {
	snapshot := s.journal.Snapshot()
	defer func() { s.lastTerm = served{generation: term.Epoch(), from: snapshot.Position} }()
	if s.lastTerm != (served{}) && (snapshot.Position == s.lastTerm.from || snapshot.Position.Epoch == s.lastTerm.generation) {
		return nil
	}
	known := make([]*instance.Instance, len(snapshot.Records))
	for i, r := range snapshot.Records {
		known[i] = r.Instance
	}
	s.tracker.forget()
	return s.backend.Restore(known)
}

func (s *Service) becomeReady() { s.readyOnce.Do(func() { close(s.ready) }) }

// Ready is closed once requests can be answered: after the first comparison with the
// backend, when it fails although the journal knows of instances, or when another process
// turns out to be the owner.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// LastReconciled is when everything was last compared with the backend by this
// process; zero before the first time.
func (s *Service) LastReconciled() time.Time {
	if t := s.lastReconciled.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// Cursor returns the end of the log as this process sees it.
func (s *Service) Cursor() string { return s.journal.Cursor(s.journal.Head()) }

// Info tells about the running service.
func (s *Service) Info() Info {
	owner, mine := s.journal.Owner()
	stats, config := s.journal.Stats(), s.journal.Config()
	return Info{
		LogID:           s.journal.LogID(),
		OwnerAddress:    owner,
		IsOwner:         mine,
		LastReconciled:  s.LastReconciled(),
		Cursor:          s.Cursor(),
		OldestCursor:    s.journal.Cursor(s.journal.Oldest()),
		JournalBytes:    int64(stats.Bytes),
		InstanceCount:   stats.Instances,
		Retention:       config.Retention,
		JournalMaxBytes: config.MaxBytes,
		TokenLifetime:   config.TokenLifetime,
		Memory:          s.journal.Memory(),
		Buckets:         s.buckets(),
	}
}

// buckets returns how the backend's limits stand.
func (s *Service) buckets() []instance.TokenBucket {
	if b, ok := s.backend.(limited); ok && s.term.Load() != nil {
		return b.Buckets()
	}
	return nil
}

// owner returns the present term, or why there is none.
func (s *Service) owner() (*journal.Term, error) {
	if term := s.term.Load(); term != nil {
		return term, nil
	}
	address, mine := s.journal.Owner()
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

// Reachable returns why what this process knows may be out of date: the journal cannot be
// reached.
func (s *Service) Reachable() error { return s.journal.Reachable() }

// Impairment returns why what happens cannot be recorded, or not be learnt by this
// process, at the moment; nil if it can.
func (s *Service) Impairment() error {
	if err := s.Reachable(); err != nil {
		return err
	}
	if term := s.term.Load(); term != nil {
		return term.Writable()
	}
	if address, mine := s.journal.Owner(); address == "" && !mine {
		_, err := s.owner()
		return err
	}
	return nil
}

// asError makes an error of whatever a backend returned.
func asError(err error) *instance.Error {
	if e, ok := errors.AsType[*instance.Error](err); ok {
		return e
	}
	return &instance.Error{Kind: instance.KindInternal, Message: "the backend failed in a way that it should not", Cause: err}
}
