package server_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/servertest"
)

// BenchmarkShedding is the latency of a caller that makes one call at a time, a start of
// one instance and then a description of it, beside another that always has 4,000 calls
// under way on one connection and makes each that is refused again at once, and without
// that one: in turns, within one run.
func BenchmarkShedding(b *testing.B) {
	for _, maxRequests := range []int{64, 256, 1024, server.DefaultMaxRequests} {
		b.Run(fmt.Sprintf("max-requests=%d", maxRequests), func(b *testing.B) { benchmarkShedding(b, maxRequests) })
	}
}

func benchmarkShedding(b *testing.B, maxRequests int) {
	const flooding, pairs = 4000, 200
	srv := servertest.New(b, servertest.Options{
		Fleet: fleet(1), Speed: 0.001, PollInterval: time.Hour, MaxRequests: maxRequests,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	lis := listen(b)
	srv.Serve(lis)
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	caller := instancedv1.NewInstanceServiceClient(conn)
	start(b, srv, id(0))
	again, err := proto.Marshal(&instancedv1.StartInstancesRequest{InstanceIds: []string{id(0)}})
	if err != nil {
		b.Fatal(err)
	}

	var quiet, beside latencies
	var shed, answered int64
	var flooded time.Duration
	for b.Loop() {
		quiet.measure(b, caller, create(b, srv, pairs))
		fresh := create(b, srv, pairs)
		f := newFlood(b, lis.Addr().String(), instancedv1.InstanceService_StartInstances_FullMethodName, again)
		f.begin(b, flooding)
		begun := time.Now()
		beside.measure(b, caller, fresh)
		flooded += time.Since(begun)
		s, a := f.end()
		shed, answered = shed+s, answered+a
	}
	b.ReportMetric(0, "ns/op")
	for what, of := range map[string][2][]time.Duration{"start": {quiet.starts, beside.starts}, "describe": {quiet.describes, beside.describes}} {
		for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99} {
			without, with := milliseconds(of[0], q), milliseconds(of[1], q)
			b.ReportMetric(without, what+"-"+name+"-ms")
			b.ReportMetric(with, what+"-"+name+"-beside-ms")
			b.ReportMetric(with/without, what+"-"+name+"-ratio")
		}
	}
	b.ReportMetric(float64(shed)/flooded.Seconds(), "shed/s")
	b.ReportMetric(float64(answered)/flooded.Seconds(), "flood-answered/s")
}

// latencies are how long the calls of one caller took.
type latencies struct{ starts, describes []time.Duration }

// measure starts and describes instances one by one. Every call has to succeed.
func (l *latencies) measure(b *testing.B, caller instancedv1.InstanceServiceClient, instances []string) {
	b.Helper()
	for _, instance := range instances {
		begun := time.Now()
		_, err := caller.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{instance}})
		started := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		_, err = caller.DescribeInstances(b.Context(), &instancedv1.DescribeInstancesRequest{
			Filter: &instancedv1.InstanceFilter{InstanceIds: []string{instance}},
		})
		if err != nil {
			b.Fatal(err)
		}
		l.starts = append(l.starts, started.Sub(begun))
		l.describes = append(l.describes, time.Since(started))
	}
}

// flood is a caller that has always the same number of calls under way on one
// connection. It speaks HTTP/2 by hand, on two goroutines, so that what is measured is
// hardly what the flood itself costs.
type flood struct {
	conn     net.Conn
	headers  []byte
	body     []byte
	ended    chan struct{}
	working  sync.WaitGroup
	answered atomic.Int64
	finished atomic.Int64
}

func newFlood(b *testing.B, address, method string, request []byte) *flood {
	b.Helper()
	conn, err := new(net.Dialer).DialContext(b.Context(), "tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for _, field := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", method},
		{":authority", address},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"instanced-principal", "flood"},
	} {
		// What is sensitive leaves nothing behind: each call sends the same bytes.
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1], Sensitive: true}); err != nil {
			b.Fatal(err)
		}
	}
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
	return &flood{conn: conn, headers: headers.Bytes(), body: append(body, request...)}
}

// begin makes the calls, and each that has ended again. It returns when some have ended.
func (f *flood) begin(b *testing.B, calls int) {
	b.Helper()
	f.ended = make(chan struct{}, calls)
	for range calls {
		f.ended <- struct{}{}
	}
	out := bufio.NewWriterSize(f.conn, 64<<10)
	framer := http2.NewFramer(out, bufio.NewReaderSize(f.conn, 64<<10))
	if _, err := out.WriteString(http2.ClientPreface); err != nil {
		b.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		b.Fatal(err)
	}
	const initialWindow, largestWindow = 1<<16 - 1, 1<<31 - 1
	if err := framer.WriteWindowUpdate(0, largestWindow-initialWindow); err != nil {
		b.Fatal(err)
	}
	f.working.Go(func() { f.write(framer, out) })
	f.working.Go(func() { f.read(framer) })
	for ctx := patient(b); f.finished.Load() < int64(calls); {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			b.Fatal("the flood does not begin")
		}
	}
	f.finished.Store(0)
	f.answered.Store(0)
}

func (f *flood) write(framer *http2.Framer, out *bufio.Writer) {
	if framer.WriteSettingsAck() != nil {
		return
	}
	stream := uint32(1)
	for range f.ended {
		headers := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.headers, EndHeaders: true})
		if headers != nil || framer.WriteData(stream, true, f.body) != nil {
			return
		}
		if len(f.ended) == 0 && out.Flush() != nil {
			return
		}
		stream += 2
	}
}

// read counts the calls that end, and those among them that have an answer.
func (f *flood) read(framer *http2.Framer) {
	defer close(f.ended)
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.DataFrame:
			f.answered.Add(1)
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				f.finished.Add(1)
				f.ended <- struct{}{}
			}
		}
	}
}

// end hangs up, and returns how many calls were refused since the flood began, and how many
// were answered.
func (f *flood) end() (shed, answered int64) {
	answered = f.answered.Load()
	shed = f.finished.Load() - answered
	_ = f.conn.Close()
	f.working.Wait()
	return shed, answered
}
