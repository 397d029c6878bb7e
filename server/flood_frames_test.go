package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// heldLog is a log in which the lines of one method are held until they are released.
type heldLog struct {
	slog.Handler
	method   string
	held     *atomic.Int64
	released chan struct{}
}

func (h heldLog) Handle(_ context.Context, line slog.Record) error {
	line.Attrs(func(a slog.Attr) bool {
		if a.Key == "method" && a.Value.String() == h.method {
			h.held.Add(1)
			<-h.released
		}
		return true
	})
	return nil
}

func (h heldLog) Enabled(context.Context, slog.Level) bool { return true }
func (h heldLog) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h heldLog) WithGroup(string) slog.Handler            { return h }

// rapidReset returns what a client sends that begins so many calls, and cancels each at once.
func rapidReset(t testing.TB, method string, streams int) []byte {
	t.Helper()
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	encoder := hpack.NewEncoder(&block)
	for n := range streams {
		block.Reset()
		for _, field := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", method},
			{":authority", "flood"},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
		} {
			if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
				t.Fatal(err)
			}
		}
		id := uint32(2*n + 1)
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := framer.WriteData(id, true, binary.BigEndian.AppendUint32([]byte{0}, 0)); err != nil {
			t.Fatal(err)
		}
		if err := framer.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// TestCallsThatAreResetAtOnceLeaveFewHandlersRunning has handlers go on after their streams
// were reset: they keep their places, and their connection is not read for more.
func TestCallsThatAreResetAtOnceLeaveFewHandlersRunning(t *testing.T) {
	t.Parallel()
	const places, calls, arriving = 32, 6000, 128
	log := heldLog{method: "ListEvents", held: new(atomic.Int64), released: make(chan struct{})}
	srv := servertest.New(t, servertest.Options{MaxRequests: places, Logger: slog.New(log)})
	lis := listen(t)
	srv.Serve(lis)
	flood, err := new(net.Dialer).DialContext(t.Context(), "tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sent := rapidReset(t, instancedv1.InstanceService_ListEvents_FullMethodName, calls)
	begun := time.Now()
	go func() { _, _ = flood.Write(sent) }()
	defer func() {
		_ = flood.Close()
		close(log.released)
	}()
	eventually(t, "it comes to the log", func() bool { return log.held.Load() >= places/2 })
	// Until the server takes up no more of it than before so many calls of others.
	for before := int64(-1); before != log.held.Load(); {
		before = log.held.Load()
		for range 200 {
			if _, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
				t.Fatalf("another caller: %v", err)
			}
		}
	}
	// A second's worth of those that are on their way may be given up as lost each second.
	limit := places + arriving*(2+int64(time.Since(begun).Seconds()))
	if held := log.held.Load(); held > limit {
		t.Errorf("%d handlers of %d calls that were reset go on, want at most %d", held, calls, limit)
	}
}
