package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	startInstances = "StartInstances"
	stopInstances  = "StopInstances"
	// outside is a change through SimulatorService.
	outside = "ChangeInstances"
)

// request is what a caller wants, under one request id however often it has to ask.
type request struct {
	id    string
	verb  string
	ids   []string
	mode  instancedv1.FailureMode
	token string // empty for none
	tag   string // the key of a tag of the caller's own, which gets the id; outside only

	// attempts counts all attempts, lost those that may have been carried out although no
	// response arrived.
	attempts, lost int
	// answer is the first one, and err the last error if there is none.
	answer *answer
	err    error
}

// answer is what both verbs answer.
type answer struct {
	changes        []*instancedv1.InstanceStateChange
	failed         []*instancedv1.InstanceFailure
	cursor, behind string
}

func (r *request) String() string {
	return fmt.Sprintf("%s %s %v token %q", r.id, r.verb, r.ids, r.token)
}

// load is callers at work.
type load struct {
	seed      uint64
	fleet     []string
	instances instancedv1.InstanceServiceClient
	simulator instancedv1.SimulatorServiceClient
	// pause is the longest that a caller rests between two requests.
	pause time.Duration

	stop    context.CancelFunc
	callers sync.WaitGroup

	mu sync.Mutex
	// requests are all that were made, problems what must not be. Guarded by mu.
	requests []*request
	problems []error
	answered int // since when somebody last asked
}

// tokenTries is how long a caller with a client token goes on asking.
const tokenTries = 60 * time.Second

// startLoad sets so many callers to work on a connection, until the load is ended.
func startLoad(ctx context.Context, seed uint64, conn grpc.ClientConnInterface, fleet []string, callers int) *load {
	l := &load{
		seed: seed, fleet: fleet, pause: 15 * time.Millisecond,
		instances: instancedv1.NewInstanceServiceClient(conn),
		simulator: instancedv1.NewSimulatorServiceClient(conn),
	}
	working, stop := context.WithCancel(ctx)
	l.stop = stop
	for n := range callers {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		l.callers.Go(func() {
			for i := 0; working.Err() == nil; i++ {
				r := l.choose(random, n, fmt.Sprintf("%d-%d-%d", seed, n, i))
				l.carryOut(ctx, r)
				l.mu.Lock()
				l.requests = append(l.requests, r)
				l.mu.Unlock()
				select {
				case <-time.After(rand.N(l.pause)):
				case <-working.Done():
				}
			}
		})
	}
	return l
}

// end lets callers finish what they are at, which they do as soon as they are served.
func (l *load) end() {
	l.stop()
	l.callers.Wait()
}

// choose draws a request.
func (l *load) choose(random *rand.Rand, caller int, id string) *request {
	r := &request{id: id, mode: instancedv1.FailureMode(1 + random.IntN(2))}
	many := 1
	if random.IntN(4) == 0 {
		many = 2 + random.IntN(8)
	}
	for _, n := range random.Perm(len(l.fleet))[:many] {
		r.ids = append(r.ids, l.fleet[n])
	}
	switch k := random.IntN(20); {
	case k < 10:
		r.verb = startInstances
	case k < 17:
		r.verb = stopInstances
	default:
		r.verb, r.tag = outside, fmt.Sprintf("last-of-%d", caller)
	}
	if r.verb != outside && random.IntN(2) == 0 {
		r.token = id
	}
	return r
}

// carryOut asks once; with a client token until there is an answer.
func (l *load) carryOut(ctx context.Context, r *request) {
	for began := time.Now(); ; {
		got, err := l.try(ctx, r)
		r.attempts++
		r.err = err
		if err == nil {
			r.answer = got
			l.mu.Lock()
			l.answered++
			l.mu.Unlock()
			return
		}
		if outcomeUnknown(err) {
			r.lost++
		}
		if !l.mayHappen(err) {
			l.problem(fmt.Errorf("%v: %w", r, err))
		}
		if r.token == "" || !worthRetrying(err) || ctx.Err() != nil {
			return
		}
		if time.Since(began) > tokenTries {
			l.problem(fmt.Errorf("%v has no answer after %d tries: %w", r, r.attempts, err))
			return
		}
		select {
		case <-time.After(20*time.Millisecond + rand.N(80*time.Millisecond)):
		case <-ctx.Done():
			return
		}
	}
}

// tryTimeout bounds one try: longer than a takeover takes.
const tryTimeout = 20 * time.Second

func (l *load) try(ctx context.Context, r *request) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "instanced-principal", "soak", "request-id", r.id)
	switch r.verb {
	case startInstances:
		resp, err := l.instances.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: r.ids, FailureMode: r.mode, ClientToken: r.token})
		return &answer{resp.GetStartingInstances(), resp.GetFailedInstances(), resp.GetCursor(), resp.GetEndCursor()}, err
	case stopInstances:
		resp, err := l.instances.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: r.ids, FailureMode: r.mode, ClientToken: r.token})
		return &answer{resp.GetStoppingInstances(), resp.GetFailedInstances(), resp.GetCursor(), resp.GetEndCursor()}, err
	default:
		_, err := l.simulator.ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
			InstanceIds: r.ids, SetTags: map[string]string{r.tag: r.id, "team": teams[len(r.ids)%len(teams)]},
		}}})
		return &answer{}, err
	}
}

// served waits until so many more requests than now are answered.
func (l *load) served(ctx context.Context, more int) error {
	l.mu.Lock()
	l.answered = 0
	l.mu.Unlock()
	for {
		l.mu.Lock()
		enough := l.answered >= more
		l.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("callers are not served: %w", ctx.Err())
		}
	}
}

// done returns what was asked for so far.
func (l *load) done() []*request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.requests)
}

func (l *load) problem(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems = append(l.problems, err)
}

// mayHappen reports whether an error is one of those that callers are prepared for.
func (l *load) mayHappen(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.FailedPrecondition, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled:
		return true
	default:
		return false
	}
}

func worthRetrying(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

// outcomeUnknown reports whether a call that failed may have been carried out: the
// service says so, or it did not get to say anything.
func outcomeUnknown(err error) bool {
	info := errorInfo(err)
	return info.GetReason() == "" || info.GetMetadata()["outcome"] == "unknown"
}

func errorInfo(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

var teams = []string{"red", "blue"}

// instanceID returns the id of the n-th instance of a fleet.
func instanceID(n int) string { return fmt.Sprintf("i-%017x", n+1) }

func instanceIDs(count int) []string {
	ids := make([]string, count)
	for n := range ids {
		ids[n] = instanceID(n)
	}
	return ids
}
