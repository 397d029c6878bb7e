package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/observer"
	"github.com/instanced/instanced/internal/policy"
)

// Backend carries commands out: EC2 or the simulator.
type Backend = observer.Backend

// Config is what a [Service] needs, which is what its observer needs.
type Config = observer.Config

// limited is a [Backend] that limits the rate of commands.
type limited interface {
	// Buckets returns how its token buckets stand, in a fixed order.
	Buckets() []instance.TokenBucket
}

// Service is the service layer. All methods are safe for concurrent use, and return errors of
// type [instance.Error] or the error of ctx.
//
// Reads and subscriptions are served by every process that shares a journal; commands only by
// its owner.
type Service struct {
	journal  *journal.Journal
	backend  Backend
	log      *slog.Logger
	metrics  *metrics
	observer *observer.Observer
	// policy is [policy.AllowAll] unless SetPolicy says otherwise.
	policy      policy.Policy
	idempotency idempotency
}

// New returns a service. It does nothing before [Service.Run].
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		journal:     cfg.Journal,
		backend:     cfg.Backend,
		log:         cfg.Logger,
		metrics:     newMetrics(cfg.Metrics),
		observer:    observer.New(cfg),
		idempotency: idempotency{inFlight: make(map[string]*tokenCall)},
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(bucketCollector{s.buckets})
	}
	return s
}

// SetPolicy sets the policy, which permits everything before. It must be called before the first
// request.
func (s *Service) SetPolicy(p policy.Policy) { s.policy = p }

// MayChangeSimulator returns an error unless the caller of the request with this context may
// change what the simulator simulates.
func (s *Service) MayChangeSimulator(ctx context.Context) error {
	return s.policy.Check(CallerOf(ctx).Authenticated, policy.ChangeSimulator)
}

// mayRead returns an error unless the caller may read.
func (s *Service) mayRead(caller Caller) error {
	return s.policy.Check(caller.Authenticated, policy.Read)
}

// Run carries commands out and observes the backend whenever this process owns the journal,
// until ctx is done. It returns nil then, and an error when it cannot go on.
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

// campaign waits for ownership. A process that sees another one own the journal is ready to
// serve reads meanwhile.
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
				s.observer.MarkReady()
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
	var ending sync.WaitGroup
	defer ending.Wait()
	defer cancel()
	s.idempotency.open(ctx)
	ending.Go(func() {
		select {
		case <-term.Done():
		case <-ctx.Done():
		}
		cancel()
		s.idempotency.close()
	})
	return s.observer.Serve(ctx, term)
}

// Ready is closed once requests can be answered: after the first full comparison with the
// backend, when that fails although the journal knows of instances, or when another process
// turns out to be the owner.
func (s *Service) Ready() <-chan struct{} { return s.observer.Ready() }

// LastReconciled is when this process last began a full comparison with the backend that
// succeeded; zero before the first one.
func (s *Service) LastReconciled() time.Time { return s.observer.LastReconciled() }

// Refresh describes instances at the backend now and records what it says, for callers who
// have just changed them there. The cursor is behind what was recorded. It retries for up to
// 30 seconds.
func (s *Service) Refresh(ctx context.Context, ids []instance.ID) (cursor string, err error) {
	return s.observer.Refresh(ctx, ids)
}

// Reconcile compares everything with the backend now, for callers who have just set it to
// something else: no description counts as stale. It retries as [Service.Refresh] does.
func (s *Service) Reconcile(ctx context.Context) (cursor string, err error) {
	return s.observer.Reconcile(ctx)
}

// Cursor returns the end of the log as this process sees it.
func (s *Service) Cursor() string { return s.journal.Cursor(s.journal.Head()) }

// Revision returns the revision of the last change that this process has seen.
func (s *Service) Revision() uint64 { return s.journal.Head().Seq }

// Info describes the running service.
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
	b, ok := s.backend.(limited)
	if _, err := s.observer.Term(); ok && err == nil {
		return b.Buckets()
	}
	return nil
}

// Reachable returns why what this process knows may be out of date: the journal cannot be
// reached.
func (s *Service) Reachable() error { return s.journal.Reachable() }

// Impairment returns why changes cannot be recorded, or cannot be seen by this process, at
// the moment; nil if they can.
func (s *Service) Impairment() error {
	if err := s.Reachable(); err != nil {
		return err
	}
	term, err := s.observer.Term()
	if err == nil {
		return term.Writable()
	}
	if address, mine := s.journal.Owner(); address == "" && !mine {
		return err
	}
	return nil
}
