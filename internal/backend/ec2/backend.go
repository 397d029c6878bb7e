package ec2

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/expiring"
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
	cfg        Config
	log        *slog.Logger
	client     *client
	queue      *sqs.Client // nil without a queue
	dispatcher *dispatch.Dispatcher
	tracker    tracker
	managed    *managedCache
	hooks      testHooks

	ctx    context.Context // of the batches; no caller's end is that of the others
	cancel context.CancelFunc
	work   sync.WaitGroup // the dispatch loop and the batches in flight

	readsMu sync.Mutex
	reads   *dispatch.Bucket // requests of DescribeInstances
}

// testHooks are those that a test can break, to see that it notices, and what it watches.
type testHooks struct {
	// onOutcome is told of every outcome, and when the call went out that led to it.
	onOutcome func(it *dispatch.Item, sent time.Time, changes []instance.StateChange, refusal *instance.Error)
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
	ctx, cancel := context.WithCancel(context.Background())
	limits := cfg.Limits.withDefaults()
	b := &Backend{
		cfg:        cfg,
		log:        cfg.Logger,
		client:     newClient(cfg),
		managed:    expiring.New[instance.ID, struct{}](managedTTL, 0),
		dispatcher: newDispatcher(limits),
		reads:      dispatch.NewBucket("requests of DescribeInstances", *limits.Describe.Requests),
		ctx:        ctx,
		cancel:     cancel,
	}
	if cfg.QueueURL != "" {
		b.queue = newQueue(cfg)
	}
	b.client.breaker.onFailure = func() { b.dispatcher.FailWaiting(b.client.breaker.openErr) }
	b.work.Go(b.dispatchLoop)
	return b
}

func newDispatcher(l Limits) *dispatch.Dispatcher {
	instances := func(verb instance.Verb, l ActionLimits) *dispatch.Bucket {
		return dispatch.NewBucket("instances of "+string(verb), *l.Instances)
	}
	stop := dispatch.NewBucket("requests of StopInstances and RebootInstances", *l.Stop.Requests)
	return dispatch.New(map[instance.Verb]dispatch.Buckets{
		instance.VerbStart: {
			Requests:  dispatch.NewBucket("requests of StartInstances", *l.Start.Requests),
			Instances: instances(instance.VerbStart, l.Start),
		},
		instance.VerbStop:   {Requests: stop, Instances: instances(instance.VerbStop, l.Stop)},
		instance.VerbReboot: {Requests: stop},
		instance.VerbTerminate: {
			Requests:  dispatch.NewBucket("requests of TerminateInstances", *l.Terminate.Requests),
			Instances: instances(instance.VerbTerminate, l.Terminate),
		},
	})
}

// dispatchLoop carries out batches as the dispatcher allows them.
func (b *Backend) dispatchLoop() {
	for batch := b.dispatcher.Next(); batch != nil; batch = b.dispatcher.Next() {
		b.work.Go(func() {
			newBatchRun(b, batch).run(b.ctx)
			b.dispatcher.Done(batch)
		})
	}
}

// Close ends what is in flight: callers are told that they will not hear what became of
// their calls. It returns when nothing is left running; sequences of notices end with
// their own context.
func (b *Backend) Close() {
	b.dispatcher.Close()
	b.cancel()
	b.work.Wait()
}

// Restore takes note of what is known, which tells what became of a call whose answer is
// lost. The instances belong to EC2: nothing is changed there.
func (b *Backend) Restore(known []*instance.Instance) error {
	for _, inst := range known {
		b.tracker.observed(inst.ID, inst.State)
	}
	return nil
}

// Buckets returns the state of the token buckets, in a fixed order.
func (b *Backend) Buckets() []instance.TokenBucket {
	b.readsMu.Lock()
	list := []instance.TokenBucket{b.reads.Status(time.Now())}
	b.readsMu.Unlock()
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbTerminate} {
		list = append(list, b.dispatcher.Buckets(verb)...)
	}
	return list
}
