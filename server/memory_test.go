package server_test

import (
	"log/slog"
	"strings"
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestMemoryIsFlatUnderASteadyLoad compares what is in use once everything that is kept has
// its full size with what it is after as many changes again, with subscribers who keep up. It
// runs alone, since it looks at the memory of the process.
func TestMemoryIsFlatUnderASteadyLoad(t *testing.T) {
	const instances, changes = 50, 24_000
	srv := servertest.New(t, servertest.Options{Fleet: fleet(instances), RingBytes: 2 << 20, JournalMaxBytes: 1 << 20})
	ctx := t.Context()
	var reference *follower
	for _, filter := range []*instancedv1.InstanceFilter{nil, {States: []instancedv1.InstanceStateName{running}}} {
		f, err := followOn(ctx, srv.Conn(), &instancedv1.WatchInstancesRequest{Filter: filter}, newDigestIndex())
		if err != nil {
			t.Fatal(err)
		}
		go f.read()
		if reference == nil {
			reference = f
		}
	}
	load := func() int {
		for range changes / instances / 4 { // each start makes two changes, and each stop
			startAndStopAll(ctx, t, srv, ids(instances))
		}
		if err := reference.until(ctx, settled(t, srv, ids(instances))); err != nil {
			t.Fatal(err)
		}
		return memoryInUse()
	}
	load()
	once := load()
	twice := load()
	t.Logf("%d KiB in use after %d changes, %d KiB after as many again", once>>10, 2*changes, twice>>10)
	if twice > once+once/10 {
		t.Errorf("%d bytes are in use, and %d bytes after %d more changes: want no more", once, twice, changes)
	}
	use := memoryUse(t, srv)
	if held, maxHeld := use.GetRecentHistoryBytes(), use.GetMaxRecentHistoryBytes(); maxHeld != 2<<20 || held > maxHeld || held < maxHeld/2 {
		t.Errorf("%d bytes of recent history are held, want at most %d, and not much less", held, maxHeld)
	}
}

func memoryUse(t testing.TB, srv *servertest.Server) *instancedv1.MemoryUse {
	t.Helper()
	info, err := srv.Instances().GetServerInfo(t.Context(), &instancedv1.GetServerInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return info.GetMemory()
}

func TestTheServerSaysWhatTakesMemory(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := servertest.New(t, servertest.Options{
		Fleet: fleet(100), Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	before := memoryUse(t, srv)
	if n := before.GetInstancesBytes() / 100; n < 500 || n > 3000 {
		t.Errorf("an instance takes %d bytes", n)
	}
	for n := range 20 {
		if _, err := srv.Instances().StartInstances(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: ids(100)[n : n+1], ClientToken: id(n)}); err != nil {
			t.Fatal(err)
		}
	}
	reference(t, srv)
	after := memoryUse(t, srv)
	for _, part := range []struct {
		name          string
		before, after int64
	}{
		{"recent history", before.GetRecentHistoryBytes(), after.GetRecentHistoryBytes()},
		{"client tokens", before.GetClientTokensBytes(), after.GetClientTokensBytes()},
		{"the index", before.GetIndexBytes(), after.GetIndexBytes()},
		{"streams", before.GetStreams(), after.GetStreams()},
	} {
		if part.after <= part.before {
			t.Errorf("%s takes %d, and %d before", part.name, part.after, part.before)
		}
	}
	sum := after.GetRecentHistoryBytes() + after.GetInstancesBytes() + after.GetClientTokensBytes() + after.GetIndexBytes()
	if heap := after.GetHeapBytes(); sum > heap || heap > after.GetProcessBytes() {
		t.Errorf("the parts take %d bytes of a heap of %d and a process of %d", sum, heap, after.GetProcessBytes())
	}
	eventually(t, "the log says it too", func() bool { return lineWith(&log, "memory in use") != "" })
	for _, part := range []string{"heap_bytes=", "recent_history_bytes=", "instances_bytes=", "client_tokens_bytes=", "index_bytes="} {
		if line := lineWith(&log, "memory in use"); !strings.Contains(line, part) {
			t.Errorf("the log line lacks %s: %s", part, line)
		}
	}
}
