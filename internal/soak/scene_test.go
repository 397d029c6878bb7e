package soak_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

const (
	soakEnv = "INSTANCED_SOAK"      // how long to soak, such as 10m
	seedEnv = "INSTANCED_SOAK_SEED" // the seed of the first round
)

// round is one run of a campaign.
type round struct {
	*testing.T
	seed uint64
	// long is whether there is time.
	long    bool
	random  *rand.Rand
	summary *summary
}

// short runs a campaign among all other tests, once; a soak runs it by itself.
func short(t *testing.T, campaign func(round)) {
	t.Parallel()
	if os.Getenv(soakEnv) != "" {
		t.Skip("TestSoak runs it")
	}
	newRound(t, firstSeed(t, 1), false, newSummary()).run(campaign)
}

func newRound(t *testing.T, seed uint64, long bool, summary *summary) round {
	return round{T: t, seed: seed, long: long, random: rand.New(rand.NewPCG(seed, 1<<32)), summary: summary}
}

func (r round) run(campaign func(round)) {
	r.Cleanup(func() {
		if r.Failed() {
			r.summary.count("violations", 1)
			r.Logf("seed %d; %s=%d begins with it", r.seed, seedEnv, r.seed)
		}
	})
	campaign(r)
}

// times is how often something is done.
func (r round) times(inShort, inLong int) int {
	if r.long {
		return inLong
	}
	return inShort
}

func firstSeed(t *testing.T, otherwise uint64) uint64 {
	text := os.Getenv(seedEnv)
	if text == "" {
		return otherwise
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", seedEnv, err)
	}
	return seed
}

const fleetSize = 24

// fleetFile is a fleet of stopped instances of two teams. Some starts fall back, and
// some notices are lost.
func fleetFile(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("instances:\n")
	for n := range fleetSize {
		fmt.Fprintf(&b, "- {instance_id: %s, tags: {team: %s}}\n", instanceID(n), teams[n%2])
	}
	b.WriteString("faults:\n")
	b.WriteString("- {kind: FAULT_KIND_FALL_BACK_TO_STOPPED, probability: 0.1}\n")
	b.WriteString("- {kind: FAULT_KIND_NOTICE_LOST, probability: 0.05}\n")
	b.WriteString("- {kind: FAULT_KIND_NOTICE_LATE, probability: 0.1, delay: 0.3s}\n")
	name := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// flags returns the flags of every process: transitions take some tenths of a second.
func (r round) flags() []string {
	return []string{
		"--sim-speed", "60", "--sim-seed", strconv.FormatUint(r.seed, 10), "--sim-fleet", fleetFile(r.T),
		"--log-level", "warn", "--min-free-disk", "0",
	}
}

// dial connects to whichever of several addresses answers.
func dial(t testing.TB, addresses ...string) *grpc.ClientConn {
	t.Helper()
	target, opts := oneOf(addresses)
	conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// dialLibrary does the same by the client library.
func dialLibrary(t testing.TB, opts client.Options, addresses ...string) *client.Client {
	t.Helper()
	target, dialOpts := oneOf(addresses)
	opts.DialOptions = append(opts.DialOptions, dialOpts...)
	c, err := client.Dial(target, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func oneOf(addresses []string) (target string, opts []grpc.DialOption) {
	var state resolver.State
	for _, a := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	r := manual.NewBuilderWithScheme("soak")
	r.InitialState(state)
	return "soak:///service", []grpc.DialOption{
		grpc.WithResolvers(r),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
	}
}

// scene is callers and subscribers at a service.
type scene struct {
	round
	conn        *grpc.ClientConn
	instances   instancedv1.InstanceServiceClient
	library     *client.Client
	subscribers []*subscriber // the first of them is the reference
	load        *load
	history     *historian
	probes      int
}

// begin subscribes at a service that is ready, and sets callers to work.
func (r round) begin(addresses ...string) *scene {
	r.Helper()
	s := &scene{round: r, conn: dial(r, addresses...), library: dialLibrary(r, client.Options{}, addresses...)}
	s.instances = instancedv1.NewInstanceServiceClient(s.conn)
	states := []instancedv1.InstanceStateName{running, stopped}
	s.subscribe("the reference", nil, 0)
	s.subscribers[0].until(r.T, "a snapshot", conformance.SnapshotSeen)
	s.subscribe("a lazy subscriber", nil, 3*time.Millisecond)
	s.subscribe("a subscriber to a tag", &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "team", Values: teams[:1]}}}, 0)
	s.subscribe("a subscriber to states", &instancedv1.InstanceFilter{States: states}, 0)
	s.subscribe("a subscriber to a few instances", &instancedv1.InstanceFilter{InstanceIds: instanceIDs(3)}, 0)
	for _, sub := range s.subscribers {
		sub.until(r.T, "the subscription", conformance.Subscribed)
	}
	s.load = startLoad(r.Context(), r.seed, s.conn, instanceIDs(fleetSize), 5)
	s.history = startHistorian(r.Context(), s.instances, instanceIDs(fleetSize), s.subscribers[0].Seen().Cursor())
	return s
}

func (s *scene) subscribe(name string, filter *instancedv1.InstanceFilter, rest time.Duration) {
	s.subscribers = append(s.subscribers, subscribe(s.T, s.library, name, filter, rest))
}

// served waits until callers are answered again.
func (s *scene) served(more int) {
	s.Helper()
	if err := s.load.served(patient(s.T), more); err != nil {
		s.Fatal(err)
	}
}

// finish ends the load, waits until all is quiet, and checks all that was promised.
func (s *scene) finish() {
	s.Helper()
	s.load.end()
	again := s.load.sameAgain(s.T, 20)
	s.history.end()
	described, end := settle(s.T, s.instances)

	reference := s.subscribers[0].until(s.T, "the end of the log", func(c *conformance.Connection) bool { return c.Cursor() == end })
	log, err := conformance.NewLog(reference)
	if err != nil {
		s.Fatal(err)
	}
	for _, sub := range s.subscribers {
		c := sub.passed(s.T, log)
		if err := conformance.All(log, c); err != nil {
			s.Errorf("%s: %v", sub.name, err)
		}
		s.summary.count("events delivered", len(c.Events()))
		s.summary.count("streams", len(c.Streams()))
	}
	history, err := conformance.History(patient(s.T), s.instances, instanceIDs(fleetSize), log.Begin())
	if err != nil {
		s.Fatal(err)
	}
	if err := s.history.err; err != nil {
		s.Error(err)
	}
	if err := conformance.Durable(s.history.last, history); err != nil {
		s.Error(err)
	}
	o := &outcome{log: log, history: history, requests: s.load.done()}
	if err := o.check(); err != nil {
		s.Error(err)
	}
	for _, err := range s.load.problems {
		s.Error(err)
	}
	fold := log.At(log.Head())
	if len(fold) != len(described) {
		s.Errorf("%d instances are described, and %d recorded", len(described), len(fold))
	}
	for id, i := range described {
		if want := fold[id]; want.GetState().GetName() != i.GetState().GetName() || fmt.Sprint(want.GetTags()) != fmt.Sprint(i.GetTags()) {
			s.Errorf("%s is described as\n%v\nand recorded as\n%v", id, i, want)
		}
	}
	s.report(o, again)
}

func (s *scene) report(o *outcome, again int) {
	answered, tries, lost := 0, 0, 0
	for _, r := range o.requests {
		tries += r.attempts
		lost += r.lost
		if r.answer != nil {
			answered++
		}
	}
	s.summary.count("requests", len(o.requests))
	s.summary.count("tries", tries)
	s.summary.count("tries without an answer", lost)
	s.summary.count("answers", answered)
	s.summary.count("answers asked for again", again)
	s.summary.count("events recorded", len(o.history))
	s.summary.count("readings of the history", s.history.reads)
	s.Logf("seed %d: %d requests, %d tries of which %d had no answer, %d answered, %d answers asked for again, %d events, %d readings of the history, streams: %v",
		s.seed, len(o.requests), tries, lost, answered, again, len(o.history), s.history.reads,
		slices.Collect(func(yield func(int) bool) {
			for _, sub := range s.subscribers {
				if !yield(len(sub.Seen().Streams())) {
					return
				}
			}
		}))
}
