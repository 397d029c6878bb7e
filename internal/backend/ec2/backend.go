package ec2

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/instanced/instanced/internal/instance"
)

// Config is what a [Backend] needs, and what may be tuned: a zero value means its default.
type Config struct {
	// AWS has the Region, the credentials, and the endpoint if it is not AWS's own, as
	// config.LoadDefaultConfig finds them. Its settings for retries are not used.
	AWS aws.Config
	// Manage are the tags that an instance must have to exist for callers: every key,
	// with one of its values, or with any where there are none. When empty, all
	// instances are managed.
	Manage map[string][]string
	// Limits are the account's raised limits.
	Limits Limits
	// QueueURL is the SQS queue that EventBridge sends state changes to. Without it no
	// notices come.
	QueueURL string
	// CallTimeout is how long one call to EC2 may take; default [instance.DefaultCallTimeout]: with a
	// look at what became of it, less than the deadline of callers that bring none.
	CallTimeout time.Duration
	// Logger is told what only the operator can mend; nil for nobody.
	Logger *slog.Logger
}

// Backend is EC2 in one account and Region. It is safe for concurrent use.
type Backend struct {
	cfg     Config
	log     *slog.Logger
	client  *client
	queue   *sqs.Client // nil without a queue
	tracker tracker
	managed managedCache
	hooks   testHooks

	work sync.WaitGroup // the rounds

	mu     sync.Mutex
	closed bool
	rounds map[*batchRun]context.CancelFunc
	seq    uint64
	desks  map[instance.Verb]*dispatcher
	reads  *bucket // of DescribeInstances
	// busy are the instances that a call is about. No other call that may change them
	// goes out meanwhile, so that their changes happen in the order of their times.
	busy  map[instance.ID]*batchRun
	freed *sync.Cond // signalled when busy or closed changes
}

// testHooks are those that a test can break, to see that it notices, and what it watches.
type testHooks struct {
	// onOutcome is told of every outcome, and when the call went out that led to it.
	onOutcome func(u item, sent time.Time, changes []instance.StateChange, refusal *instance.Error)
	// failEveryone refuses everybody in a batch for what EC2 says of one.
	failEveryone bool
	// everyoneFirst tells every caller of an instance that its call was the first.
	everyoneFirst bool
}

// New returns a backend that calls nobody yet. Close it in the end.
func New(cfg Config) *Backend {
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = instance.DefaultCallTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Backend{
		cfg:    cfg,
		log:    cfg.Logger,
		client: newClient(cfg),
		desks:  make(map[instance.Verb]*dispatcher),
		busy:   make(map[instance.ID]*batchRun),
		rounds: make(map[*batchRun]context.CancelFunc),
	}
	if cfg.QueueURL != "" {
		b.queue = newQueue(cfg)
	}
	b.client.breaker.onFailure = b.failWaiting
	b.freed = sync.NewCond(&b.mu)
	b.newDispatchers(cfg.Limits.withDefaults())
	return b
}

// newDispatchers puts up a desk for each verb.
func (b *Backend) newDispatchers(l Limits) {
	start := newBucket("requests of StartInstances", *l.Start.Requests)
	stop := newBucket("requests of StopInstances and RebootInstances", *l.Stop.Requests)
	terminate := newBucket("requests of TerminateInstances", *l.Terminate.Requests)
	b.reads = newBucket("requests of DescribeInstances", *l.Describe.Requests)
	instances := func(verb instance.Verb, l ActionLimits) *bucket {
		return newBucket("instances of "+string(verb), *l.Instances)
	}
	pump := func(d *dispatcher) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pumpDue(d)
	}
	for _, d := range []*dispatcher{
		newDesk(instance.VerbStart, start, instances(instance.VerbStart, l.Start), pump),
		newDesk(instance.VerbStop, stop, instances(instance.VerbStop, l.Stop), pump),
		newDesk(instance.VerbReboot, stop, nil, pump),
		newDesk(instance.VerbTerminate, terminate, instances(instance.VerbTerminate, l.Terminate), pump),
	} {
		b.desks[d.verb] = d
	}
}

// Close ends what is on its way: callers are told that they will not hear what became of
// their calls. It returns when nothing is left running; sequences of notices end with
// their own context.
func (b *Backend) Close() {
	b.mu.Lock()
	b.closed = true
	for _, d := range b.desks {
		d.timer.Stop()
		for _, l := range d.batches {
			for _, c := range l.waiting {
				if !c.isWaiting() {
					continue
				}
				units := c.items(c.waiting)
				c.waiting = nil
				for _, u := range units {
					u.resolve(nil, u.ids, errClosing())
				}
			}
			l.waiting, l.live, l.pos = nil, 0, 0
		}
	}
	for _, cancel := range b.rounds {
		cancel()
	}
	b.freed.Broadcast()
	b.mu.Unlock()
	b.work.Wait()
}

func errClosing() *instance.Error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendClosing,
		Message:    "this process is ending; nothing was changed by this call",
		RetryAfter: retryUnavailable,
	}
}

// Restore takes note of what is known, which tells what became of a call whose answer is
// lost. The instances belong to EC2: nothing is changed there.
func (b *Backend) Restore(known []*instance.Instance) error {
	for _, inst := range known {
		b.tracker.observed(inst.ID, inst.State)
	}
	return nil
}

// Buckets returns how the buckets stand, in a fixed order.
func (b *Backend) Buckets() []instance.TokenBucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	list := []instance.TokenBucket{b.reads.standing(now)}
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbTerminate} {
		d := b.desks[verb]
		instances := d.instances.standing(now)
		instances.Waiting = d.ids
		list = append(list, d.requests.standing(now), instances)
	}
	return list
}

func (b *bucket) standing(now time.Time) instance.TokenBucket {
	b.advance(now)
	return instance.TokenBucket{Name: b.name, Level: b.level, Capacity: b.capacity, Refill: b.rate(now)}
}
