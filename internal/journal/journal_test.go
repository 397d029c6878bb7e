package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/instanced/instanced/internal/instance"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		writeUntilKilled(dir)
	}
	if arguments := os.Getenv(etcdEnv); arguments != "" {
		serveEtcd(arguments)
	}
	if dir := os.Getenv(refuseEnv); dir != "" {
		openDamaged(dir)
	}
	if dir := os.Getenv(recallEnv); dir != "" {
		recall(dir)
	}
	goleak.VerifyTestMain(m)
}

// testConfig is a journal in its own directory, whose log goes to the test.
func testConfig(t testing.TB) Config {
	return Config{DataDir: t.TempDir(), Logger: testLogger(t), MinFreeDisk: -1}
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// openJournal opens a journal that is closed with the test.
func openJournal(t testing.TB, c Config) *Journal {
	t.Helper()
	j, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	return j
}

func closeJournal(t testing.TB, j *Journal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := j.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// own opens a journal and becomes its owner.
func own(t testing.TB, c Config) (*Journal, *Term) {
	t.Helper()
	j := openJournal(t, c)
	return j, campaign(t, j)
}

func campaign(t testing.TB, j *Journal) *Term {
	t.Helper()
	term, err := j.Campaign(t.Context())
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	return term
}

// id returns the n-th instance id.
func id(n int) instance.ID { return instance.ID(fmt.Sprintf("i-%017x", n)) }

var launch = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// machine returns an instance of about 280 bytes in the log.
func machine(id instance.ID, state instance.State) *instance.Instance {
	return &instance.Instance{
		ID:                    id,
		AccountID:             "123456789012",
		Region:                "eu-central-1",
		AvailabilityZone:      "eu-central-1a",
		Type:                  "m7i.2xlarge",
		State:                 state,
		StateReason:           &instance.StateReason{Code: "Client.UserInitiatedShutdown", Message: "Client.UserInitiatedShutdown: User initiated shutdown"},
		StateTransitionReason: "User initiated (2026-05-04 03:02:01 GMT)",
		LaunchTime:            launch,
		PrivateIPAddress:      "10.20.30.40",
		PublicIPAddress:       "203.0.113.25",
		Tenancy:               "default",
		RootDeviceType:        "ebs",
		Tags:                  map[string]string{"Name": "worker-1234", "team": "platform"},
	}
}

func change(id instance.ID, state instance.State) instance.Change {
	return instance.Change{
		After:      machine(id, state),
		Source:     instance.SourceAnswer,
		Cause:      instance.Cause{Principal: "alice", Verb: instance.VerbStart, RequestID: "r-0123456789"},
		OccurredAt: launch,
		ObservedAt: launch.Add(time.Second),
	}
}

// trimTo deletes the batches that were recorded before a time, or that precede the last bytes.
func trimTo(t testing.TB, term *Term, before time.Time, maxBytes uint64) {
	t.Helper()
	if err := term.maintenance.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer term.maintenance.unlock()
	if err := term.trimToLocked(t.Context(), before, maxBytes); err != nil {
		t.Fatal(err)
	}
}

// set records that an instance is in a state, and returns the position.
func set(t testing.TB, term *Term, id instance.ID, state instance.State) Position {
	t.Helper()
	p, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(change(id, state))
		return nil
	})
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	return p
}

// wantReason fails the test unless the error has that kind and reason.
func wantReason(t testing.TB, err error, kind instance.Kind, reason string) {
	t.Helper()
	_ = wantError(t, err, kind, reason)
}

// wantError is wantReason for those who want to know more of the error.
func wantError(t testing.TB, err error, kind instance.Kind, reason string) *instance.Error {
	t.Helper()
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Kind != kind || e.Reason != reason {
		t.Fatalf("error %v, want kind %d with reason %s", err, kind, reason)
	}
	return e
}
