package soak_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server"
)

// TestFloodsCostWhoeverSendsThem floods the service from 20 connections: its memory comes
// back to where it was, and others' calls are answered soon. Subscriptions that are well
// formed get their places, whose memory is bounded. It needs a machine that has nothing else
// to do; make soak runs it.
func TestFloodsCostWhoeverSendsThem(t *testing.T) {
	if os.Getenv(soakEnv) == "" {
		t.Skip("make soak runs it")
	}
	const connections, lasts = 20, 8 * time.Second
	const maxP99, maxGrowth, maxStreamBytes = 100 * time.Millisecond, 1.5, 64 << 10
	const wellFormed = "subscriptions"
	for name, frames := range map[string]func(f *http2.Framer, headers []byte, stream uint32) error{
		"calls that are reset": func(f *http2.Framer, headers []byte, stream uint32) error {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers, EndHeaders: true})
			_ = f.WriteData(stream, true, binary.BigEndian.AppendUint32([]byte{0}, 0))
			return f.WriteRSTStream(stream, http2.ErrCodeCancel)
		},
		wellFormed: func(f *http2.Framer, headers []byte, stream uint32) error {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers, EndHeaders: true})
			return f.WriteData(stream, true, binary.BigEndian.AppendUint32([]byte{0}, 0))
		},
		"SETTINGS":      func(f *http2.Framer, _ []byte, _ uint32) error { return f.WriteSettings() },
		"PING":          func(f *http2.Framer, _ []byte, _ uint32) error { return f.WritePing(false, [8]byte{}) },
		"WINDOW_UPDATE": func(f *http2.Framer, _ []byte, _ uint32) error { return f.WriteWindowUpdate(0, 1) },
		"CONTINUATION": func(f *http2.Framer, headers []byte, stream uint32) error {
			if stream == 1 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers})
			}
			return f.WriteContinuation(1, false, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, "--data-dir", filepath.Join(t.TempDir(), "data"))
			p.start()
			p.ready()
			instances := instancedv1.NewInstanceServiceClient(dial(t, p.address))
			ask := func() time.Duration {
				began := time.Now()
				if _, err := instances.DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{}); err != nil {
					t.Fatalf("another caller: %v", err)
				}
				return time.Since(began)
			}
			for range 1000 {
				ask()
			}
			before := residentBytes(t, p)

			var flooding sync.WaitGroup
			until := time.Now().Add(lasts)
			for range connections {
				flooding.Go(func() { flood(p.address, frames, until) })
			}
			var took []time.Duration
			peak := before
			for time.Now().Before(until) {
				took = append(took, ask())
				peak = max(peak, residentBytes(t, p))
			}
			flooding.Wait()
			slices.Sort(took)
			p99 := took[len(took)*99/100]
			after := residentBytes(t, p)
			ended := time.Now()
			for ; float64(after) > maxGrowth*float64(before) && time.Since(ended) < time.Minute; time.Sleep(time.Second) {
				after = residentBytes(t, p)
			}
			t.Logf("memory %d MiB before, %d at the peak, %d after %v; %d calls of another caller, p99 %v",
				before>>20, peak>>20, after>>20, time.Since(ended).Round(time.Second), len(took), p99)
			if name == wellFormed && peak-before > server.DefaultMaxStreams*maxStreamBytes {
				t.Errorf("at most %d subscriptions take %d bytes", server.DefaultMaxStreams, peak-before)
			}
			if float64(after) > maxGrowth*float64(before) {
				t.Errorf("a minute later %d bytes are in memory, before the flood %d were", after, before)
			}
			if p99 > maxP99 {
				t.Errorf("one in a hundred calls of another caller takes %v, want at most %v", p99, maxP99)
			}
		})
	}
}

// flood sends frames on one connection, and on the next when that is closed.
func flood(address string, frames func(f *http2.Framer, headers []byte, stream uint32) error, until time.Time) {
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for _, field := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", instancedv1.InstanceService_WatchInstances_FullMethodName},
		{":authority", "flood"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1], Sensitive: true})
	}
	for time.Now().Before(until) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(until)
		go func() {
			var ignored [32 << 10]byte
			for {
				if _, err := conn.Read(ignored[:]); err != nil {
					return
				}
			}
		}()
		var out bytes.Buffer
		out.WriteString(http2.ClientPreface)
		framer := http2.NewFramer(&out, nil)
		framer.AllowIllegalWrites = true
		_ = framer.WriteSettings()
		for stream := uint32(1); ; stream += 2 {
			if frames(framer, headers.Bytes(), stream) != nil {
				break
			}
			if out.Len() > 16<<10 {
				if _, err := out.WriteTo(conn); err != nil {
					break
				}
			}
		}
		_ = conn.Close()
	}
}

// residentBytes returns what the process has in memory.
func residentBytes(t *testing.T, p *process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.current().cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
