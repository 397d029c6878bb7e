package soak_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

// pair is two processes on one etcd: one commands the backend, the other follows.
type pair struct {
	round
	processes []*process
	networks  []*proxy           // from each to etcd
	conns     []*grpc.ClientConn // one to each
}

func (r round) newPair() *pair {
	r.Helper()
	p := &pair{round: r}
	e := newEtcd(r)
	for range 2 {
		network := newProxy(r, e.address)
		one := newProcess(r.T, append(r.flags(), "--etcd-endpoints", "http://"+network.Listen)...)
		p.processes = append(p.processes, one)
		p.networks = append(p.networks, network)
		p.conns = append(p.conns, dial(r, one.address))
		one.start()
		one.ready()
	}
	return p
}

func (p *pair) addresses() (list []string) {
	for _, one := range p.processes {
		list = append(list, one.address)
	}
	return list
}

// owner waits until a process says that it is the owner, and returns which.
func (p *pair) owner() int {
	p.Helper()
	found := -1
	await(p.T, "there is an owner", func() bool {
		for n, conn := range p.conns {
			if info, err := info(p.T, conn); err == nil && info.GetOwner().GetIsThisProcess() {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func info(t testing.TB, conn *grpc.ClientConn) (*instancedv1.GetServerInfoResponse, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return instancedv1.NewInstanceServiceClient(conn).GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{})
}

func TestCallersAndStreamsGoOnAtTheProcessThatTakesOver(t *testing.T) {
	short(t, takenOver)
}

// takenOver kills the owner of the backend, so that the other process takes over when
// the owner has not been heard of for its time to live. The one that was killed follows.
func takenOver(r round) {
	p := r.newPair()
	s := r.begin(p.addresses()...)
	s.served(20)
	for range r.times(1, 4) {
		owner := p.owner()
		time.Sleep(time.Duration(r.random.Int64N(int64(300 * time.Millisecond))))
		p.processes[owner].kill()
		killed := time.Now()
		r.summary.count("kills of the owner", 1)
		s.served(1)
		takeover := time.Since(killed)
		r.summary.count("takeovers", 1)
		r.summary.took("from the kill of an owner to callers being served", takeover)
		r.Logf("seed %d: callers were served again %v after the kill", r.seed, takeover.Round(time.Millisecond))
		if next := p.owner(); next == owner {
			r.Errorf("the process that was killed is the owner")
		}
		p.processes[owner].start()
		p.processes[owner].ready()
		s.served(20)
	}
	s.finish()
	r.sameEverywhere(p, s)
}

func TestAnOwnerThatIsPartedFromEtcdIsReplacedAndCatchesUp(t *testing.T) {
	short(t, parted)
}

// parted parts the owner from etcd, while callers and subscribers still reach it. The
// other process takes over; what was connected to the first one stays, and is told.
func parted(r round) {
	p := r.newPair()
	s := r.begin(p.addresses()...)
	s.served(20)
	for range r.times(1, 4) {
		owner := p.owner()
		before := make([]int, len(s.subscribers))
		for i, sub := range s.subscribers {
			before[i] = len(sub.Seen().Streams())
		}
		time.Sleep(time.Duration(r.random.Int64N(int64(300 * time.Millisecond))))
		p.networks[owner].silence()
		began := time.Now()
		await(r.T, "the other process takes over", func() bool {
			info, err := info(r.T, p.conns[1-owner])
			return err == nil && info.GetOwner().GetIsThisProcess()
		})
		s.served(1)
		r.summary.count("owners parted from etcd", 1)
		r.summary.took("from the parting of an owner to callers being served by the other process", time.Since(began))
		await(r.T, "the process that was the owner says what is wrong", func() bool {
			info, err := info(r.T, p.conns[owner])
			return err == nil && info.GetImpairment().GetReason() == "JOURNAL_UNAVAILABLE" && !info.GetOwner().GetIsThisProcess()
		})
		s.served(20)
		p.networks[owner].restore()
		await(r.T, "it is mended", func() bool {
			info, err := info(r.T, p.conns[owner])
			return err == nil && info.GetImpairment() == nil
		})
		s.served(20)
		for i, sub := range s.subscribers {
			if n := len(sub.Seen().Streams()); n > before[i] {
				r.Errorf("%s needed %d streams more", sub.name, n-before[i])
			}
		}
	}
	s.finish()
	r.sameEverywhere(p, s)
}

// sameEverywhere checks that both processes have the same history.
func (r round) sameEverywhere(p *pair, s *scene) {
	r.Helper()
	head, err := s.instances.DescribeInstances(patient(r.T), &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		r.Fatal(err)
	}
	var histories [][]*instancedv1.Event
	for _, conn := range p.conns {
		instances := instancedv1.NewInstanceServiceClient(conn)
		if _, err := instances.DescribeInstances(patient(r.T), &instancedv1.DescribeInstancesRequest{MinCursor: head.GetCursor()}); err != nil {
			r.Fatal(err)
		}
		history, err := conformance.History(patient(r.T), instances, instanceIDs(fleetSize), "")
		if err != nil {
			r.Fatal(err)
		}
		histories = append(histories, history)
	}
	if err := conformance.Durable(histories[0], histories[1]); err != nil || len(histories[0]) != len(histories[1]) {
		r.Errorf("one process has a history of %d events, the other of %d: %v", len(histories[0]), len(histories[1]), err)
	}
}

func TestStreamsFollowProcessesThatAreEndedInTurnWithoutAnError(t *testing.T) {
	short(t, rotated)
}

// rotated ends two processes in turn, in good order, as a rolling update does.
func rotated(r round) {
	p := r.newPair()
	s := r.begin(p.addresses()...)
	s.served(20)
	for n := range r.times(4, 20) {
		one := p.processes[n%2]
		time.Sleep(time.Duration(r.random.Int64N(int64(300 * time.Millisecond))))
		began := time.Now()
		one.terminate()
		r.summary.count("ends by SIGTERM", 1)
		r.summary.took("from SIGTERM to the end of the process", time.Since(began))
		s.served(10)
		r.summary.took("from SIGTERM to ten callers being served by the other process", time.Since(began))
		one.start()
		one.ready()
	}
	s.finish()
	farewells := 0
	for _, sub := range s.subscribers {
		n, err := farewell(sub.Seen())
		if err != nil {
			r.Errorf("%s: %v", sub.name, err)
		}
		farewells += n
	}
	if farewells == 0 {
		r.Error("no stream was ended")
	}
	r.summary.count("streams that ended with a goodbye", farewells)
	r.sameEverywhere(p, s)
}

// farewell checks that each stream of a sequence but the last ended with a goodbye that
// says where to go on.
func farewell(c *conformance.Connection) (ended int, err error) {
	all := c.Streams()
	for _, messages := range all[:len(all)-1] {
		last := messages[len(messages)-1]
		bye := last.GetGoodbye()
		switch {
		case bye.GetReason() != instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN:
			return ended, fmt.Errorf("a stream ended after %v, without a goodbye", last.WatchInstancesResponse)
		case last.GetCursor() == "" || bye.GetRetryDelay().AsDuration() <= 0:
			return ended, fmt.Errorf("a goodbye without a cursor or a delay: %v", last)
		}
		ended++
	}
	return ended, nil
}
