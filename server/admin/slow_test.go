package admin

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pipes is a listener whose connections are pipes without buffers, so that what is not read is
// not written.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9090} }

// send opens a connection and sends a text on it.
func (p *pipes) send(t *testing.T, text string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	p.conns <- localConn{server}
	if _, err := io.WriteString(client, text); err != nil {
		t.Fatal(err)
	}
	return client
}

func (p *pipes) get(t *testing.T, path string) int {
	t.Helper()
	conn := p.send(t, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	defer func() { _ = conn.Close() }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestSlowClientsAreDisconnected has clients that do not read what they asked for, or do not ask
// to the end. Probes are answered all the while.
func TestSlowClientsAreDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Metrics: prometheus.NewRegistry()})
		lis := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(lis) }()
		defer func() {
			_ = s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		var slow []net.Conn
		for range 3 * maxScrapes {
			slow = append(slow, lis.send(t, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"))
		}
		halfway := lis.send(t, "GET /metrics HTTP/1.1\r\nX-Half:")
		for range 100 { // 10 ms apart
			if status := lis.get(t, "/readyz"); status != http.StatusOK {
				t.Errorf("/readyz meanwhile: %d", status)
			}
			time.Sleep(10 * time.Millisecond)
		}
		gone := func(conn net.Conn) bool {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := io.Copy(io.Discard, conn)
			return err == nil // the end, rather than the deadline
		}
		time.Sleep(headerTimeout)
		if !gone(halfway) {
			t.Errorf("who has not asked to the end within %v is still connected", headerTimeout)
		}
		time.Sleep(writeTimeout)
		for _, conn := range slow {
			if !gone(conn) {
				t.Errorf("who has not read for %v is still connected", writeTimeout)
			}
		}
		if status := lis.get(t, "/metrics"); status != http.StatusOK {
			t.Errorf("a scrape afterwards: %d", status)
		}
	})
}

// localConn is a pipe between loopback addresses.
type localConn struct{ net.Conn }

func (localConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }

// TestAProfileLastsAsLongAsAsked shows that no timeout for slow clients cuts a profile short.
func TestAProfileLastsAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Metrics: prometheus.NewRegistry()})
		lis := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(lis) }()
		defer func() {
			_ = s.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		began := time.Now()
		if status := lis.get(t, "/debug/pprof/goroutine?seconds=90"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		if took := time.Since(began); took < 90*time.Second {
			t.Errorf("it took %v, want 90 s", took)
		}
	})
}
