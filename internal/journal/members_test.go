package journal

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/instanced/instanced/internal/addrtest"
	"github.com/instanced/instanced/internal/instance"
)

// testMember is a member of an etcd cluster, in a process of its own.
type testMember struct {
	t        testing.TB
	endpoint string
	process  *exec.Cmd
}

// startMembers starts a cluster of three.
func startMembers(t testing.TB) []*testMember {
	t.Helper()
	var peers []string
	for range 3 {
		peers = append(peers, addrtest.Free(t))
	}
	var list []*testMember
	var ready []func() bool
	for i := range peers {
		address := addrtest.Free(t)
		arguments := t.TempDir() + " " + address + " " + strings.Join(append(peers[i:i+1:i+1], append(peers[:i:i], peers[i+1:]...)...), ",")
		process, kill, wait := runEtcd(t, arguments)
		t.Cleanup(kill)
		list, ready = append(list, &testMember{t, "http://" + address, process}), append(ready, wait)
	}
	for _, wait := range ready {
		if !wait() {
			t.Fatal("a member of etcd does not start")
		}
	}
	return list
}

// hang stops the process; its kernel goes on to acknowledge what it is sent.
func (m *testMember) hang()   { m.signal(syscall.SIGSTOP) }
func (m *testMember) resume() { m.signal(syscall.SIGCONT) }

func (m *testMember) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.process.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// isLeader asks a member who leads.
func (m *testMember) isLeader() bool {
	m.t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.endpoint}})
	if err != nil {
		m.t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // says that its context was cancelled
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	status, err := client.Status(ctx, m.endpoint)
	if err != nil {
		m.t.Fatal(err)
	}
	return status.Leader == status.Header.GetMemberId()
}

// TestAnOwnerOutlivesAMemberThatHangs stops one of three members, the leader or another one,
// while an owner, a follower and their watches use just that.
func TestAnOwnerOutlivesAMemberThatHangs(t *testing.T) {
	t.Parallel()
	for name, leads := range map[string]bool{"the leader": true, "another": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			members := startMembers(t)
			bad := 0
			for i, m := range members {
				if m.isLeader() == leads {
					bad = i
				}
			}
			config := func(name string) Config {
				c := Config{Logger: testLogger(t).With("process", name), Address: name, OwnerTTL: 6 * time.Second}
				for i := range members { // the one that is to hang is used first
					c.Endpoints = append(c.Endpoints, members[(bad+i)%len(members)].endpoint)
				}
				return c
			}
			follower := openJournal(t, config("follower"))
			owner, term := own(t, config("owner"))
			before := set(t, term, id(1), instance.StateStopped)
			if _, err := follower.Resolve(t.Context(), owner.Cursor(before)); err != nil {
				t.Fatal(err)
			}

			members[bad].hang()
			hung := time.Now()
			// The lease is renewed, and others are used for writes, watches and reads, long
			// before the lease would have been lost.
			after := set(t, term, id(1), instance.StatePending)
			wrote := time.Since(hung)
			r := follower.Read(before)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if b, err := r.Next(ctx); err != nil || b.Position != after {
				t.Fatalf("the follower reads %v, %v", b, err)
			}
			if _, err := owner.History(ctx, "", []instance.ID{id(1)}, owner.Oldest(), 10); err != nil {
				t.Errorf("history cannot be read: %v", err)
			}
			for time.Since(hung) < owner.config.OwnerTTL+2*time.Second {
				if left := term.Remaining(); left < instance.MinTermLeft {
					t.Fatalf("%v after a member hung %v remains of the term", time.Since(hung), left)
				}
				if err := term.Writable(); err != nil && time.Since(hung) > 5*time.Second {
					t.Fatalf("%v after a member hung: %v", time.Since(hung), err)
				}
				select {
				case <-term.Done():
					t.Fatalf("the owner lost its lease: %v", term.Err())
				case <-time.After(50 * time.Millisecond):
				}
			}
			// Electing another leader takes its own time; a member that does not lead is
			// replaced within 2 s, on a machine that has nothing else to do.
			if limit := 4 * time.Second; !leads && wrote > limit {
				t.Errorf("a write took %v", wrote)
			}
			members[bad].resume()
			last := set(t, term, id(1), instance.StateRunning)
			if _, err := follower.Resolve(ctx, owner.Cursor(last)); err != nil {
				t.Error(err)
			}
			await(t, func() bool {
				m := owner.store.members
				m.mu.Lock()
				defer m.mu.Unlock()
				return m.healthyLocked(0)
			})
		})
	}
}

// TestAMemberThatIsNoLongerTheCurrentOneIsTakenOutToo has a request fail before the probes do,
// which still have to end the watches.
func TestAMemberThatIsNoLongerTheCurrentOneIsTakenOutToo(t *testing.T) {
	m := &members{log: testLogger(t), zap: zap.NewNop(), security: &security{}, stop: func() {}}
	defer m.close()
	for range 3 {
		conn, err := m.connect("http://" + addrtest.Free(t)) // where nothing listens
		if err != nil {
			t.Fatal(err)
		}
		m.list = append(m.list, &member{conn: conn})
	}
	silent := m.list[0]
	lost := silent.conn
	m.failed(lost, context.DeadlineExceeded)
	if m.conn() == lost {
		t.Fatal("a member that did not answer is still used")
	}
	for range 3 * maxProbeFailures {
		m.probed(t.Context(), silent, context.DeadlineExceeded)
	}
	fresh := silent.conn
	if fresh == lost {
		t.Fatal("the connection is kept")
	}
	select {
	case <-lost.Ctx().Done():
	case <-time.After(10 * time.Second):
		t.Error("what waits for an answer over it goes on to wait")
	}
	if fresh.Ctx().Err() != nil {
		t.Error("it is connected to anew with each probe")
	}
	m.probed(t.Context(), silent, nil)
	for range maxProbeFailures {
		m.probed(t.Context(), silent, context.DeadlineExceeded)
	}
	if silent.conn == fresh {
		t.Error("it is not taken out again")
	}
}

// TestAShortDeadlineDoesNotMoveOthersToAnotherMember: that a read was given less time than
// a probe says nothing of the member.
func TestAShortDeadlineDoesNotMoveOthersToAnotherMember(t *testing.T) {
	for deadline, moves := range map[time.Duration]bool{time.Millisecond: false, probeTimeout: true} {
		synctest.Test(t, func(t *testing.T) {
			m := &members{list: []*member{{conn: &memberConn{}}, {conn: &memberConn{}}}}
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			used := m.conn()
			_, err := readFrom(ctx, m, func(*clientv3.Client) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
			if !errors.Is(err, context.DeadlineExceeded) || (m.conn() != used) != moves {
				t.Errorf("after a read within %v: %v, another member is used %v", deadline, err, m.conn() != used)
			}
		})
	}
}
