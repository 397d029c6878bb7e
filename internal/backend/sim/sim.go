package sim

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
)

// DefaultSpeed brings a start to running in 2 to 5 seconds.
const DefaultSpeed = 5

// Config configures a [Backend]. The zero value is an empty simulator without delays,
// throttling and faults.
type Config struct {
	// Seed determines all random numbers.
	Seed uint64
	// Speed divides the delays between states: at 1 they are like EC2's, a start
	// takes 10 to 25 seconds. At 0 there are none. Otherwise at least 0.001.
	Speed float64
	// Throttle turns on EC2's documented token buckets.
	Throttle bool
	// AccountID is the account of the instances; 123456789012 if empty.
	AccountID string
	// Region is their Region; us-east-1 if empty.
	Region string
	// Fleet is created if there is nothing to restore, and by Reset.
	Fleet []Spec
	// Faults are the initial fault plan, also after Reset.
	Faults []Fault
	// Options choose among behaviours where that of EC2 is unknown.
	Options Options
	// Logger logs injected faults and dropped notices; nil discards them.
	Logger *slog.Logger
	// Metrics registers the metrics; nil registers none.
	Metrics prometheus.Registerer
}

// Backend is the simulator. It is safe for concurrent use.
type Backend struct {
	config  Config
	wrong   error  // what is wrong with config
	fleet   []Spec // Config.Fleet, completed
	log     *slog.Logger
	notices *queue
	metrics *metrics

	mu       sync.Mutex
	closed   bool
	machines map[instance.ID]*machine
	ids      []instance.ID // the keys of machines; see sortedIDs
	unsorted bool          // whether ids has others, or an order of its own
	// launches are the instances of each client token.
	launches map[string]map[instance.ID]struct{}
	schedule schedule
	timer    *time.Timer // fires when the first of schedule is due
	armed    time.Time   // when the timer fires; zero when it does not
	plan     []*planned
	lag      time.Duration // how far back Describe may have to look
	buckets  buckets
	calls    uint64 // numbers the calls, and the notices between them
	idSalt   uint64 // keeps ids of an earlier process from being used again
	created  uint64 // counts the ids generated
}

// New returns a simulator without instances: call [Backend.Restore] next, which also
// reports problems of the configuration. Close it after use.
func New(config Config) *Backend {
	config.AccountID = cmp.Or(config.AccountID, "123456789012")
	config.Region = cmp.Or(config.Region, "us-east-1")
	config.Options = config.Options.withDefaults()
	b := &Backend{
		config:   config,
		log:      cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		machines: map[instance.ID]*machine{},
		launches: map[string]map[instance.ID]struct{}{},
		buckets:  newBuckets(),
		metrics:  newMetrics(config.Metrics),
	}
	b.notices = newQueue(b.log, config.Options.BestEffortNotices)
	b.wrong = errors.Join(b.checkSpeed(), b.expandFleet(), b.setPlan(config.Faults))
	b.timer = time.AfterFunc(time.Hour, b.tick)
	b.timer.Stop()
	return b
}

// Err returns all problems of the configuration. If there are any, nothing can be restored.
func (b *Backend) Err() error { return b.wrong }

// Close stops the timer and ends the sequences of notices. Later calls are rejected.
func (b *Backend) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.timer.Stop()
	b.notices.close()
}

// Restore replaces all instances by the ones in the journal, with their pending
// transitions: an overdue transition is completed at once, with its planned time. If the
// journal has no instances it creates Config.Fleet. Notices that were not acknowledged are
// dropped. Faults and token buckets are unchanged: they represent EC2, which does not
// depend on the owner of the service.
func (b *Backend) Restore(known []*instance.Instance) error {
	now, closed := b.lock()
	if closed != nil {
		return closed
	}
	defer b.unlock(now)
	if b.wrong != nil {
		return b.wrong
	}
	if len(known) == 0 {
		b.populateLocked(now)
		return nil
	}
	for _, inst := range known {
		if inst.Simulator == nil {
			return fmt.Errorf("instance %s was not recorded by the simulator", inst.ID)
		}
	}
	b.clearLocked()
	for _, inst := range known {
		b.adoptLocked(inst, now)
		b.idSalt ^= draw(0, drawID, inst.ID, 0)
	}
	return nil
}

// Reset removes all instances and restores Config.Fleet and Config.Faults, with full
// buckets. Removed instances have no notice.
func (b *Backend) Reset() error {
	now, closed := b.lock()
	if closed != nil {
		return closed
	}
	defer b.unlock(now)
	if b.wrong != nil {
		return b.wrong
	}
	b.buckets = newBuckets()
	b.plan, b.lag = nil, 0
	b.extendPlanLocked(b.config.Faults)
	b.populateLocked(now)
	return nil
}

func (b *Backend) checkSpeed() error {
	if s := b.config.Speed; s != 0 && !(s >= 0.001 && s <= math.MaxFloat64) {
		return fmt.Errorf("simulator speed %v: want 0 for no delays, or at least 0.001", s)
	}
	return nil
}

func (b *Backend) expandFleet() error {
	var problems violations
	b.fleet = b.expand(b.config.Fleet, maxFleet, "in a fleet", &problems)
	return problems.err()
}

// populateLocked replaces all instances by Config.Fleet.
func (b *Backend) populateLocked(now time.Time) {
	b.clearLocked()
	b.created = 0
	b.add(b.fleet, now, nil)
}

// clearLocked removes all instances and their notices.
func (b *Backend) clearLocked() {
	b.machines = map[instance.ID]*machine{}
	b.launches = map[string]map[instance.ID]struct{}{}
	b.ids, b.unsorted = nil, false
	b.schedule = nil
	b.idSalt = 0
	b.notices.clear()
}

// lock takes the lock and makes the transitions that are due. If the simulator is closed it
// fails without taking the lock.
func (b *Backend) lock() (now time.Time, closed error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return time.Time{}, &instance.Error{Kind: instance.KindUnavailable, Message: "The simulator is closed."}
	}
	now = time.Now()
	b.advanceDueLocked(now)
	return now, nil
}

// unlock makes the transitions that take no time, and releases the lock.
func (b *Backend) unlock(now time.Time) {
	b.advanceDueLocked(now)
	b.armTimerLocked()
	b.mu.Unlock()
}

// nextCallLocked numbers a call, so that a fault counts it once.
func (b *Backend) nextCallLocked() uint64 {
	b.calls++
	return b.calls
}
