package server

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/instanced/instanced/internal/admission"
)

// written returns what a client sends: its preface, and so many frames.
func written(count int, write func(*http2.Framer) error) []byte {
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, nil)
	framer.AllowIllegalWrites = true
	for range count {
		if err := write(framer); err != nil {
			panic(err)
		}
	}
	return out.Bytes()
}

// readAll returns how long it takes until all of what was sent has been read.
func readAll(t *testing.T, c *connection, far net.Conn, sent []byte) time.Duration {
	t.Helper()
	go func() {
		_, _ = far.Write(sent)
		_ = far.Close()
	}()
	begun := time.Now()
	if read, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil || read != int64(len(sent)) {
		t.Errorf("%d bytes of %d were read: %v", read, len(sent), err)
	}
	return time.Since(begun)
}

var ping = func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }

func TestAConnectionIsReadAsSlowlyAsWhatItSendsCosts(t *testing.T) {
	t.Parallel()
	const count = 100_000
	for name, c := range map[string]struct {
		write func(*http2.Framer) error
		price time.Duration
	}{
		"PING":                 {ping, framePrice},
		"SETTINGS":             {func(f *http2.Framer) error { return f.WriteSettings() }, framePrice},
		"PRIORITY":             {func(f *http2.Framer) error { return f.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }, framePrice},
		"CONTINUATION":         {func(f *http2.Framer) error { return f.WriteContinuation(1, false, nil) }, framePrice},
		"WINDOW_UPDATE":        {func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1) }, framePrice},
		"unknown":              {func(f *http2.Framer) error { return f.WriteRawFrame(0xfe, 0, 1, nil) }, framePrice},
		"DATA in small pieces": {func(f *http2.Framer) error { return f.WriteData(1, false, []byte{1}) }, framePrice},
		"HEADERS of what is no call": {func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 5), EndHeaders: true})
		}, refusalPrice},
		"RST_STREAM": {func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) }, cancelPrice},
		"DATA":       {func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, smallDataBytes)) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2}})
				near, far := net.Pipe()
				conn, err := a.connect(near)
				if err != nil {
					t.Fatal(err)
				}
				took := readAll(t, conn, far, written(count, c.write))
				// A twentieth is free, as is what comes first.
				price := count * c.price
				if paid := price*(freeShare-1)/freeShare - maxFree - maxDue - price/100; took > price || took < paid {
					t.Errorf("%d frames take %v to read, want %v to %v", count, took, paid, price)
				}
				_ = conn.Close()
			})
		})
	}
}

func TestAClientThatCancelsNowAndThenIsReadAsEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2}})
		near, far := net.Pipe()
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		sent := written(int(maxFree/cancelPrice), func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeCancel) })
		if took := readAll(t, conn, far, sent); took != 0 {
			t.Errorf("it takes %v", took)
		}
		_ = conn.Close()
	})
}

func TestWindowsMayBeUpdatedForWhatWasWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const updates = 10_000
		a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2}})
		near, far := net.Pipe()
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.CopyN(io.Discard, far, updates*bytesPerUpdate) }()
		if _, err := conn.Write(make([]byte, updates*bytesPerUpdate)); err != nil {
			t.Fatal(err)
		}
		sent := written(updates, func(f *http2.Framer) error { return f.WriteWindowUpdate(1, bytesPerUpdate) })
		if took := readAll(t, conn, far, sent); took != 0 {
			t.Errorf("it takes %v", took)
		}
		_ = conn.Close()
	})
}

func TestFloodingConnectionsPayOneAfterAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const connections, count = 20, 20_000
		a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: connections}})
		begun := time.Now()
		done := make(chan struct{})
		for range connections {
			near, far := net.Pipe()
			conn, err := a.connect(near)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				readAll(t, conn, far, written(count, ping))
				_ = conn.Close()
				done <- struct{}{}
			}()
		}
		for range connections {
			<-done
		}
		// What is free for each comes back meanwhile.
		const price = connections * count * framePrice
		if took := time.Since(begun); took < price/3 || took > price {
			t.Errorf("%d frames of %d connections take %v, and cost %v", connections*count, connections, took, price)
		}
	})
}

func TestAPeerThatDoesNotTakeWhatIsWrittenIsNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2}})
		near, far := net.Pipe()
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		const unread = time.Minute
		go func() { _, _ = conn.Write(make([]byte, 100)) }()
		time.Sleep(2 * stalledAfter)
		go func() {
			time.Sleep(unread)
			_, _ = io.CopyN(io.Discard, far, 100)
		}()
		if took := readAll(t, conn, far, written(1, ping)); took != unread {
			t.Errorf("it is read after %v, want after %v, when all was taken", took, unread)
		}
		_ = conn.Close()
	})
}

// TestCallsThatNeverReachAdmissionAreGivenUp has calls that grpc-go rejects itself after they
// have begun: no more than maxArriving of them are read per second.
func TestCallsThatNeverReachAdmissionAreGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const calls = 4 * maxArriving
		a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2}})
		near, far := net.Pipe()
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		sent := written(calls, func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 5), EndHeaders: true})
		})
		go func() {
			_, _ = far.Write(sent)
			_ = far.Close()
		}()
		begun := time.Now()
		for buffer := make([]byte, 32<<10); ; {
			_, err := conn.Read(buffer)
			conn.begun += int64(conn.frames.seen.headers) // as the transport would have it
			if err != nil {
				break
			}
		}
		if took := time.Since(begun); took < calls/maxArriving*arrivingTimeout-arrivingTimeout {
			t.Errorf("%d calls were read within %v", calls, took)
		}
		_ = conn.Close()
	})
}

func FuzzFrameCounter(f *testing.F) {
	f.Add(written(3, ping), 5)
	f.Add(written(2, func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, 300)) }), 40)
	f.Fuzz(func(t *testing.T, sent []byte, piece int) {
		var whole, pieces frameCounter
		whole.read(sent)
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+max(0, piece))
			pieces.read(rest[:n])
			rest = rest[n:]
		}
		if whole != pieces || whole.payload < 0 {
			t.Errorf("at once %+v, in pieces %+v", whole, pieces)
		}
	})
}
