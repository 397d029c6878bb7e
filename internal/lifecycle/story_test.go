package lifecycle_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// story is the life of one instance, written by a seed: what truly happens to it, and what
// the backend makes of that in its notices, answers and descriptions.
type story struct {
	seed uint64
	id   instance.ID
	// exact is whether notices and descriptions are like the simulator's: with the
	// instance in full, exact times, and a count of its transitions. Otherwise they are
	// like EC2's: a state and whole seconds.
	exact bool
	// commanded is whether some of the starts and stops are commands to the service.
	commanded bool
	trouble   trouble

	mu     sync.Mutex
	random *rand.Rand // of faults
	truth  []moment
	gone   time.Time
	// held is a notice that the next one overtakes.
	held *instance.Notice
}

// moment is when an instance entered a state.
type moment struct {
	at    time.Time
	image *instance.Instance
}

// trouble says how often what goes wrong.
type trouble struct {
	lost, doubled, late, reordered, stale, answerLost float64
	// lag is how old a stale description is.
	lag time.Duration
}

func newStory(seed uint64) *story {
	random := rand.New(rand.NewPCG(seed, 1))
	s := &story{
		seed:      seed,
		id:        instance.ID(fmt.Sprintf("i-%017x", seed)),
		exact:     random.IntN(2) == 0,
		commanded: random.IntN(2) == 0,
		random:    rand.New(rand.NewPCG(seed, 2)),
	}
	often := func() float64 { return []float64{0, 0, 0.1, 0.5}[random.IntN(4)] }
	if random.IntN(5) > 0 {
		s.trouble = trouble{lost: often(), doubled: often(), late: often(), reordered: often(), stale: often(), answerLost: often() / 2, lag: time.Duration(1+random.IntN(30)) * time.Second}
	}
	begin := &instance.Instance{ID: s.id, Region: "us-east-1", Type: "t3.micro", State: instance.StateStopped, LaunchTime: time.Now().Add(-time.Hour).Truncate(time.Second).UTC()}
	begin.StateReason = userShutdown
	if random.IntN(2) == 0 {
		begin.State, begin.StateReason = instance.StateRunning, nil
	}
	if s.exact {
		begin.Simulator = &instance.SimulatorAttributes{}
	}
	s.truth = []moment{{at: time.Now().Add(-time.Hour).UTC(), image: begin}}
	return s
}

var userShutdown = &instance.StateReason{Code: "Client.UserInitiatedShutdown", Message: "Client.UserInitiatedShutdown: User initiated shutdown"}

// calm reports whether nothing goes wrong.
func (s *story) calm() bool { return s.trouble == trouble{} }

// play lives the life: command carries a start or a stop out through the service.
func (s *story) play(b *stage, command func(instance.Verb)) {
	random := rand.New(rand.NewPCG(s.seed, 3))
	between := func(shortest, longest time.Duration) {
		time.Sleep(shortest + time.Duration(random.Int64N(int64(longest-shortest))))
	}
	for steps := 4 + random.IntN(12); ; steps-- {
		now := s.now().State
		if steps <= 0 && !now.Transitional() {
			return
		}
		switch {
		case now.Transitional() && s.exact:
			between(50*time.Millisecond, 20*time.Second)
		default:
			between(2*time.Second, 60*time.Second)
		}
		chance := random.IntN(20)
		switch now {
		case instance.StateStopped:
			s.start(b, random, command)
		case instance.StatePending:
			to := instance.StateRunning
			if chance < 4 {
				to = []instance.State{instance.StateStopped, instance.StateStopped, instance.StateStopping, instance.StateShuttingDown}[chance]
			}
			s.enter(b, to)
		case instance.StateRunning:
			switch {
			case chance == 0:
				s.enter(b, instance.StateShuttingDown)
			case s.commanded && random.IntN(2) == 0:
				command(instance.VerbStop)
			default:
				s.enter(b, instance.StateStopping)
			}
		case instance.StateStopping:
			s.enter(b, instance.StateStopped)
		case instance.StateShuttingDown:
			s.enter(b, instance.StateTerminated)
			between(time.Minute, 5*time.Minute)
			s.vanish()
			return
		case instance.StateUnspecified, instance.StateTerminated:
			return
		}
	}
}

func (s *story) start(b *stage, random *rand.Rand, command func(instance.Verb)) {
	if s.commanded && random.IntN(2) == 0 {
		command(instance.VerbStart)
	} else {
		s.enter(b, instance.StatePending)
	}
}

func (s *story) now() *instance.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.truth[len(s.truth)-1].image
}

func (s *story) vanish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = time.Now()
}

// enter takes the instance to a state, and gives notice of it, or not.
func (s *story) enter(b *stage, state instance.State) instance.StateChange {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now().UTC()
	before := s.truth[len(s.truth)-1].image
	next := before.Clone()
	next.State = state
	switch state {
	case instance.StatePending:
		next.LaunchTime, next.StateReason, next.StateTransitionReason = at.Truncate(time.Second), nil, ""
	case instance.StateRunning:
		next.PublicIPAddress = fmt.Sprintf("203.0.113.%d", len(s.truth))
	case instance.StateStopped:
		next.PublicIPAddress = ""
		if before.State == instance.StatePending {
			next.StateReason = &instance.StateReason{Code: "Client.InternalError", Message: "Client.InternalError: Client error on launch"}
		}
	case instance.StateStopping, instance.StateShuttingDown:
		next.StateReason = userShutdown
		next.StateTransitionReason = fmt.Sprintf("User initiated (%s)", at.Format("2006-01-02 15:04:05 GMT"))
	case instance.StateUnspecified, instance.StateTerminated:
	}
	if s.exact {
		next.Simulator.Transitions++
	}
	s.truth = append(s.truth, moment{at: at, image: next})
	s.tellLocked(b, next, at)
	change := instance.StateChange{ID: s.id, Previous: before.State, Current: state, At: at}
	if s.exact {
		change.After = next
	}
	return change
}

// tellLocked gives notice of a state.
func (s *story) tellLocked(b *stage, image *instance.Instance, at time.Time) {
	n := instance.Notice{ID: s.id, State: image.State, OccurredAt: at, Source: instance.SourceSimulator, Instance: image}
	delay := 10 * time.Millisecond
	if !s.exact {
		n.OccurredAt, n.Source, n.Instance = at.Truncate(time.Second), instance.SourceEventBridge, nil
		delay = time.Second
	}
	overtaken := s.held
	s.held = nil
	switch {
	case s.strikes(s.trouble.lost):
	case s.strikes(s.trouble.reordered):
		s.held = &n
	default:
		if s.strikes(s.trouble.late) {
			delay += time.Duration(s.random.Int64N(int64(90 * time.Second)))
		}
		b.send(n, delay)
		if s.strikes(s.trouble.doubled) {
			b.send(n, delay+time.Duration(s.random.Int64N(int64(20*time.Second))))
		}
	}
	if overtaken != nil {
		b.send(*overtaken, delay+time.Millisecond)
	}
}

func (s *story) strikes(probability float64) bool {
	return probability > 0 && s.random.Float64() < probability
}

// view is what a description shows, nil for nothing.
func (s *story) view(calm bool) *instance.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now()
	if !calm && s.strikes(s.trouble.stale) {
		at = at.Add(-s.trouble.lag)
	}
	if !s.gone.IsZero() && !at.Before(s.gone) {
		return nil
	}
	for _, m := range slices.Backward(s.truth) {
		if !m.at.After(at) {
			return m.image
		}
	}
	return s.truth[0].image
}

// stage is a backend on which many stories are played.
type stage struct {
	stories map[instance.ID]*story
	ids     []instance.ID

	mu      sync.Mutex
	calm    bool
	random  *rand.Rand
	waiting []instance.Notice
	wake    chan struct{}
	// unacknowledged counts the notices that were not acknowledged.
	unacknowledged int
}

func newStage(stories []*story) *stage {
	b := &stage{stories: make(map[instance.ID]*story), wake: make(chan struct{}, 1), random: rand.New(rand.NewPCG(stories[0].seed, 4))}
	for _, s := range stories {
		b.stories[s.id] = s
		b.ids = append(b.ids, s.id)
	}
	slices.Sort(b.ids)
	return b
}

// redelivery is how long a notice that is not acknowledged stays away.
const redelivery = 30 * time.Second

// send delivers a notice after a while, and again until it is acknowledged.
func (b *stage) send(n instance.Notice, delay time.Duration) {
	b.mu.Lock()
	b.unacknowledged++
	b.mu.Unlock()
	acked := false
	n.Ack = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !acked {
			acked = true
			b.unacknowledged--
		}
	}
	var push func()
	push = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if acked {
			return
		}
		b.waiting = append(b.waiting, n)
		select {
		case b.wake <- struct{}{}:
		default:
		}
		time.AfterFunc(redelivery, push)
	}
	time.AfterFunc(delay, push)
}

func (b *stage) Notices(ctx context.Context) iter.Seq2[instance.Notice, error] {
	return func(yield func(instance.Notice, error) bool) {
		for {
			b.mu.Lock()
			batch := b.waiting
			b.waiting = nil
			b.mu.Unlock()
			for _, n := range batch {
				if !yield(n, nil) {
					return
				}
			}
			select {
			case <-b.wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (b *stage) Restore([]*instance.Instance) error { return nil }

// Execute starts or stops an instance. It takes a while before and after that.
func (b *stage) Execute(_ context.Context, cmd instance.Command) (instance.Result, error) {
	s := b.stories[cmd.IDs[0]]
	s.mu.Lock()
	before, after := time.Duration(s.random.Int64N(int64(300*time.Millisecond))), time.Duration(s.random.Int64N(int64(1500*time.Millisecond)))
	lost := s.strikes(s.trouble.answerLost)
	s.mu.Unlock()
	cmd.Sent(cmd.IDs)
	time.Sleep(before)
	change := s.enter(b, map[instance.Verb]instance.State{instance.VerbStart: instance.StatePending, instance.VerbStop: instance.StateStopping}[cmd.Verb])
	time.Sleep(after)
	if lost {
		return instance.Result{}, &instance.Error{Kind: instance.KindUnavailable, Message: "the answer was lost", OutcomeUnknown: true}
	}
	return instance.Result{Changes: []instance.StateChange{change}}, nil
}

func (b *stage) Describe(_ context.Context, q instance.DescribeQuery) (instance.DescribePage, error) {
	b.mu.Lock()
	calm, before, after := b.calm, time.Duration(b.random.Int64N(int64(100*time.Millisecond))), time.Duration(b.random.Int64N(int64(100*time.Millisecond)))
	b.mu.Unlock()
	time.Sleep(before)
	ids := q.IDs
	if q.All {
		ids = b.ids
	}
	var page instance.DescribePage
	for _, id := range ids {
		if s := b.stories[id]; s != nil {
			if image := s.view(calm); image != nil {
				page.Instances = append(page.Instances, image)
			}
		}
	}
	time.Sleep(after)
	return page, nil
}

// calmDown ends the trouble with descriptions.
func (b *stage) calmDown() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calm = true
}
