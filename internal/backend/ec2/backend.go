package ec2

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

// Config configures a [Backend]. A zero value means the default.
type Config struct {
	// AWS has the Region, the credentials, and any custom endpoint, as
	// config.LoadDefaultConfig returns them. Its retry settings are ignored.
	AWS aws.Config
	// Manage are the tags that an instance must have to be visible to callers: every key,
	// with one of the values listed, or any value if none are. When empty, all instances
	// are managed.
	Manage map[string][]string
	// Limits are the account's raised limits.
	Limits Limits
	// QueueURL is the SQS queue that EventBridge sends state changes to. Without it there
	// are no notices.
	QueueURL string
	// CallTimeout is how long one call to EC2 may take; default [instance.DefaultCallTimeout]: with a
	// check of the outcome it takes less than the default deadline of callers.
	CallTimeout time.Duration
	// Logger gets what only the operator can fix; nil discards it.
	Logger *slog.Logger
	// Metrics registers the metrics; nil registers none.
	Metrics prometheus.Registerer
}

// Backend carries commands out on EC2 in one account and Region. It is safe for concurrent use.
type Backend struct {
	cfg         Config
	log         *slog.Logger
	client      *client
	queue       *sqs.Client // nil without a queue
	dispatcher  *dispatch.Dispatcher
	lastChanges lastChanges
	managed     *managedCache
	metrics     *metrics
	hooks       testHooks

	expiry      instant               // of the credentials of the last call
	lastReceive instant               // when SQS last answered
	inbox       atomic.Pointer[inbox] // nil while notices are not read

	ctx    context.Context // of the batches: a caller that leaves cancels none
	cancel context.CancelFunc
	work   sync.WaitGroup // the dispatch loop and the batches in flight

	readsMu sync.Mutex
	reads   *dispatch.Bucket // requests of DescribeInstances
}

// testHooks let tests observe outcomes, and break a rule to see that they notice.
type testHooks struct {
	// onOutcome is called with every outcome, and when the call that led to it was sent.
	onOutcome func(it *dispatch.Item, sent time.Time, changes []instance.StateChange, err *instance.Error)
	// failEveryone fails all items of a batch for what EC2 says of one.
	failEveryone bool
	// everyoneFirst tells every caller that its call caused the change.
	everyoneFirst bool
}

// New returns a backend, which makes no call yet. It has to be closed.
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
		metrics:    newMetrics(cfg.Metrics, cfg.QueueURL != ""),
		managed:    expiring.New[instance.ID, struct{}](managedTTL, 0),
		dispatcher: newDispatcher(limits),
		reads:      dispatch.NewBucket("requests of DescribeInstances", *limits.Describe.Requests),
		ctx:        ctx,
		cancel:     cancel,
	}
	b.client = newClient(cfg, b.metrics, &b.expiry)
	if cfg.QueueURL != "" {
		b.queue = newQueue(cfg, &b.expiry)
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(stateCollector{b})
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
			ctx, span := startBatchSpan(b.ctx, batch)
			newBatchRun(b, batch).run(ctx)
			span.End()
			b.dispatcher.Done(batch)
		})
	}
}

// Close cancels the batches in flight and fails the requests that wait. It returns when nothing
// is left running; sequences of notices end with their own context.
func (b *Backend) Close() {
	b.dispatcher.Close()
	b.cancel()
	b.work.Wait()
}

// Restore loads the recorded states, which help to tell what became of a call whose answer was
// lost. It changes nothing in EC2.
func (b *Backend) Restore(known []*instance.Instance) error {
	for _, inst := range known {
		b.lastChanges.observed(inst)
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
