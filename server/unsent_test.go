package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/stats"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// outcomeLog counts the calls of one method by their code.
type outcomeLog struct {
	slog.Handler
	method     string
	ok, failed *atomic.Int64
}

func (l outcomeLog) Handle(_ context.Context, line slog.Record) error {
	of, code := "", ""
	line.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "method":
			of = a.Value.String()
		case "code":
			code = a.Value.String()
		}
		return true
	})
	switch {
	case of != l.method:
	case code == "OK":
		l.ok.Add(1)
	default:
		l.failed.Add(1)
	}
	return nil
}

func (l outcomeLog) Enabled(context.Context, slog.Level) bool { return true }
func (l outcomeLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l outcomeLog) WithGroup(string) slog.Handler            { return l }

// TestResponsesThatAreNotReadTakeLittleMemory has a peer shut its windows and call for
// large responses: calls whose responses find no room keep their places, and the next are
// refused. Once it opens its windows it gets all that was promised.
func TestResponsesThatAreNotReadTakeLittleMemory(t *testing.T) {
	t.Parallel()
	const places, calls, instances = 16, 400, 1000
	log := outcomeLog{method: "DescribeInstances", ok: new(atomic.Int64), failed: new(atomic.Int64)}
	fleet := &instancedv1.CreateInstancesRequest{}
	for n := range instances {
		spec := &instancedv1.InstanceSpec{InstanceId: fmt.Sprintf("i-%017x", n+1), Tags: map[string]string{}}
		for tag := range 4 {
			spec.Tags[fmt.Sprint(tag)] = string(bytes.Repeat([]byte{'v'}, 250))
		}
		fleet.Instances = append(fleet.Instances, spec)
	}
	const minResponseBytes = 800 << 10 // a page ends at 1 MiB
	srv := servertest.New(t, servertest.Options{MaxRequests: places, Logger: slog.New(log), Fleet: fleet})
	lis := listen(t)
	srv.Serve(lis)
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, conn)
	_ = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	encoder := hpack.NewEncoder(&block)
	request := []byte{0x10, 0xe8, 0x07} // page_size of 1,000
	for n := range calls {
		block.Reset()
		for _, field := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", instancedv1.InstanceService_DescribeInstances_FullMethodName},
			{":authority", "flood"},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
		} {
			_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
		}
		id := uint32(2*n + 1)
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
		_ = framer.WriteData(id, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...))
	}
	go func() { _, _ = out.WriteTo(conn) }()
	eventually(t, "all calls have come to an end, or wait for room", func() bool { return log.ok.Load()+log.failed.Load() == calls })
	// What is queued, one more that was the first, and those that have half of the places.
	limit := int64(4<<20/minResponseBytes + 1 + places/2)
	if ok := log.ok.Load(); ok > limit {
		t.Errorf("%d responses of %d bytes and more are in memory, want at most %d", ok, minResponseBytes, limit)
	}
	for range 50 {
		if _, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Fatalf("another caller: %v", err)
		}
	}
	ok := log.ok.Load()

	open := http2.NewFramer(conn, nil)
	_ = open.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = open.WriteWindowUpdate(0, 1<<31-1-1<<16)
	var read int64
	for ended := 0; ended < calls; {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("after %d calls: %v", ended, err)
		}
		if frame.Header().Type == http2.FrameData {
			read += int64(frame.Header().Length)
		}
		if frame.Header().Type == http2.FrameHeaders && frame.Header().Flags.Has(http2.FlagHeadersEndStream) {
			ended++
		}
	}
	if read < ok*minResponseBytes {
		t.Errorf("%d bytes of %d responses were read", read, ok)
	}
}

// compressionSeen notes whether a response was compressed.
type compressionSeen struct{ bytes, wireBytes atomic.Int64 }

func (c *compressionSeen) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return ctx
}

func (c *compressionSeen) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (c *compressionSeen) HandleConn(context.Context, stats.ConnStats) {}
func (c *compressionSeen) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		c.bytes.Add(int64(in.Length))
		c.wireBytes.Add(int64(in.CompressedLength))
	}
}

func TestResponsesToCallersThatCompressAreCountedToo(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	var seen compressionSeen
	conn := srv.Dial(grpc.WithStatsHandler(&seen), grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	if _, err := instancedv1.NewInstanceServiceClient(conn).DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{}); err != nil {
		t.Fatal(err)
	}
	if plain, wire := seen.bytes.Load(), seen.wireBytes.Load(); plain == 0 || plain != wire {
		t.Errorf("%d bytes come as %d", plain, wire)
	}
}
