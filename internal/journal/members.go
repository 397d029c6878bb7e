package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

const (
	// probeInterval is how often each member of an external etcd is asked for something,
	// and probeTimeout how long it may take to answer.
	probeInterval, probeTimeout = 500 * time.Millisecond, 500 * time.Millisecond
	// maxProbeFailures is how many probes in a row a member may leave unanswered before
	// another one is used in its place.
	maxProbeFailures = 2
	// readRetryTimeout is how long a read is tried again at other members: until one that
	// fell silent as it began has been taken out.
	readRetryTimeout = 3 * time.Second
)

// members are the members of an external etcd cluster. All requests go to one of them, over a
// connection of its own, until it fails: a member that is stopped while its kernel still
// acknowledges what it is sent is noticed by probes, since gRPC would wait for it.
type members struct {
	log      *slog.Logger
	zap      *zap.Logger
	security *security
	probe    string // the key that probes read
	list     []*member
	// probing ends with a call of stop, which does nothing before it begins.
	probing sync.WaitGroup
	stop    context.CancelFunc

	mu sync.Mutex
	// current is the member that requests go to.
	current int
}

// member is one of them. The mutex of members guards it.
type member struct {
	endpoint string
	conn     *memberConn
	// failures counts the probes in a row that were not answered.
	failures int
	// replaced is whether conn was made since the member stopped answering.
	replaced bool
}

// memberConn is a connection to a member. It is closed, and all that waits for it fails, when
// the member is taken out.
type memberConn struct {
	*clientv3.Client
	handshakes *handshakes // nil without TLS
}

// tlsFailure returns why TLS fails with a member, nil if it does not.
func (c *memberConn) tlsFailure() error {
	if c.handshakes == nil {
		return nil
	}
	failure := c.handshakes.failure.Load()
	if failure == nil {
		return nil
	}
	return c.handshakes.security.explainTLS(*failure)
}

// newMembers connects to a cluster, whether or not it can be reached.
func newMembers(c Config, probe string) (*members, error) {
	security, err := newSecurity(c.Security, c.Endpoints, c.Logger)
	if err != nil {
		return nil, err
	}
	// What the clients would warn of they also return.
	m := &members{stop: func() {}, log: c.Logger, zap: newZap(c.Logger).WithOptions(zap.IncreaseLevel(zap.ErrorLevel)), security: security, probe: probe}
	for _, endpoint := range c.Endpoints {
		conn, err := m.connect(endpoint)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("etcd at %s cannot be used: %w", endpoint, err)
		}
		m.list = append(m.list, &member{endpoint: endpoint, conn: conn})
	}
	return m, nil
}

// startProbing begins to notice members that do not answer.
func (m *members) startProbing() {
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	for _, member := range m.list {
		m.probing.Go(func() { m.probeRegularly(ctx, member) })
	}
}

func (m *members) connect(endpoint string) (*memberConn, error) {
	conn := &memberConn{}
	var options []grpc.DialOption
	if secure(endpoint) {
		conn.handshakes = newHandshakes(m.security)
		options = append(options, grpc.WithTransportCredentials(conn.handshakes))
	}
	if m.security.Username != "" {
		l := &login{security: m.security}
		options = append(options, grpc.WithChainUnaryInterceptor(l.unary), grpc.WithChainStreamInterceptor(l.stream))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{endpoint},
		DialTimeout:          openTimeout,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		MaxUnaryRetries:      1, // another member may be tried
		DialOptions:          options,
		Logger:               m.zap,
	})
	if err != nil {
		return nil, err
	}
	conn.Client = client
	return conn, nil
}

// check returns an error if the members can be reached but not used: for their certificates, that
// of this process, or what its user may do. It does not wait for members that cannot be reached.
func (m *members) check(ctx context.Context, k *keys) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, end := []byte(k.prefix), []byte(clientv3.GetPrefixRangeEnd(k.prefix))
	// It asks for all that the journal needs, and does nothing, since no revision is below 0.
	request := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte(k.meta), Target: pb.Compare_CREATE, Result: pb.Compare_LESS, TargetUnion: &pb.Compare_CreateRevision{}}},
		Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: from, RangeEnd: end}}},
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: from, RangeEnd: end}}},
		},
	}
	outcomes := make(chan error, len(m.list))
	for _, member := range m.list {
		conn, endpoint := member.conn, member.endpoint
		go func() {
			for begun := time.Now(); ; time.Sleep(minRetryPause) {
				_, err := pb.NewKVClient(conn.ActiveConnection()).Txn(ctx, request) // without waiting for a connection
				err = m.unusable(endpoint, conn, err, k)
				// A member that rejects a certificate is not always heard to say so before the
				// connection breaks.
				rejects := conn.handshakes != nil && conn.handshakes.completed.Load()
				if !errors.Is(err, errUnreached) || !rejects || ctx.Err() != nil || time.Since(begun) > readRetryTimeout {
					outcomes <- err
					return
				}
				conn.ActiveConnection().ResetConnectBackoff()
			}
		}()
	}
	var unusable error
	for range m.list {
		switch err := <-outcomes; {
		case err == nil:
			return nil
		case !errors.Is(err, errUnreached):
			unusable = err
		}
	}
	return unusable
}

// errUnreached says nothing of whether a member could be used.
var errUnreached = errors.New("it cannot be reached")

// unusable returns why a member that a request failed with cannot be used.
func (m *members) unusable(endpoint string, conn *memberConn, err error, k *keys) error {
	if err == nil {
		return nil
	}
	if failure := conn.tlsFailure(); failure != nil {
		return fmt.Errorf("etcd at %s cannot be used: %w", endpoint, failure)
	}
	if denied(err) {
		return fmt.Errorf("etcd at %s cannot be used: %w", endpoint, m.security.explainDenied(err, k.prefix))
	}
	if _, ok := errors.AsType[*ConfigError](err); ok {
		return err
	}
	return errUnreached
}

// explain returns why a read from the members failed, if it is known better than err says.
func (m *members) explain(err error, k *keys) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, member := range m.list {
		if why := m.unusable(member.endpoint, member.conn, err, k); !errors.Is(why, errUnreached) {
			return why
		}
	}
	return err
}

// close ends all connections; what waits for an answer fails.
func (m *members) close() {
	m.stop()
	m.probing.Wait()
	for _, member := range m.list {
		_ = member.conn.Close() // says that its context was cancelled
	}
}

// client returns a client that sends each request to the current member.
func (m *members) client() *clientv3.Client {
	client := clientv3.NewCtxClient(context.Background(), clientv3.WithZapLogger(m.zap))
	client.KV, client.Lease, client.Watcher = membersKV{m: m}, membersLease{m: m}, membersWatcher{m: m}
	return client
}

// conn returns the connection to the current member.
func (m *members) conn() *memberConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list[m.current].conn
}

// healthyLocked reports whether a member answers probes.
func (m *members) healthyLocked(i int) bool { return m.list[i].failures < maxProbeFailures }

// advanceLocked makes another member the current one: the next that answers probes, or the
// next at all if none does.
func (m *members) advanceLocked() {
	next := (m.current + 1) % len(m.list)
	for n := range m.list {
		if i := (next + n) % len(m.list); m.healthyLocked(i) && i != m.current {
			next = i
			break
		}
	}
	m.current = next
}

// unanswered reports whether an error is that of a member, or of the way to it, rather than
// etcd's answer or the caller's doing.
func unanswered(err error) bool {
	for _, answer := range []error{context.Canceled, rpctypes.ErrCompacted, rpctypes.ErrLeaseNotFound} {
		if errors.Is(err, answer) {
			return false
		}
	}
	return err != nil && !noSpace(err) && !refused(err) && !denied(err)
}

// failed notes how a request over a connection ended: if it was not answered, the next one
// tries another member.
func (m *members) failed(conn *memberConn, err error) {
	if !unanswered(err) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list[m.current].conn == conn {
		m.advanceLocked()
	}
}

// probeRegularly asks a member for something, until ctx ends.
func (m *members) probeRegularly(ctx context.Context, member *member) {
	regularly := time.NewTicker(probeInterval)
	defer regularly.Stop()
	for {
		m.mu.Lock()
		conn := member.conn
		m.mu.Unlock()
		// By itself the client tries again in ever longer intervals, of up to two minutes.
		if c := conn.ActiveConnection(); c.GetState().String() == "TRANSIENT_FAILURE" {
			c.ResetConnectBackoff()
		}
		asking, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := conn.Get(asking, m.probe, clientv3.WithSerializable(), clientv3.WithKeysOnly())
		cancel()
		if ctx.Err() != nil {
			return
		}
		if failure := conn.tlsFailure(); err != nil && failure != nil {
			err = failure
		}
		if denied(err) { // which is an answer
			err = nil
		}
		m.probed(ctx, member, err)
		select {
		case <-regularly.C:
		case <-ctx.Done():
			return
		}
	}
}

// probed notes the outcome of a probe. A member that leaves too many unanswered is taken
// out, if there is another one: what waits for it goes on there.
func (m *members) probed(ctx context.Context, member *member, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		if member.failures >= maxProbeFailures {
			m.log.InfoContext(ctx, "a member of etcd answers again", slog.String("endpoint", member.endpoint))
		}
		member.failures, member.replaced = 0, false
		return
	}
	member.failures++
	if member.failures == maxProbeFailures {
		m.log.WarnContext(ctx, "a member of etcd does not answer", slog.String("endpoint", member.endpoint), slog.Any("error", err))
	}
	if member.failures < maxProbeFailures {
		return
	}
	current := m.list[m.current] == member
	if current {
		m.advanceLocked()
	}
	// A request that failed may have made another member the current one before: watches and
	// other requests wait for this one still.
	if !m.healthyLocked(m.current) || member.replaced && !current {
		return
	}
	fresh, err := m.connect(member.endpoint)
	if err != nil {
		m.log.WarnContext(ctx, "a member of etcd cannot be connected to again", slog.String("endpoint", member.endpoint), slog.Any("error", err))
		return
	}
	lost := member.conn
	member.conn, member.replaced = fresh, true
	m.probing.Go(func() { _ = lost.Close() }) // says that its context was cancelled
}
