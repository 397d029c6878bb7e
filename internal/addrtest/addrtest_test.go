package addrtest_test

import (
	"net"
	"testing"

	"github.com/instanced/instanced/internal/addrtest"
)

// TestAnAddressStaysFree listens and connects everywhere else, which takes none of the
// addresses that were given out.
func TestAnAddressStaysFree(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		address := addrtest.Free(t)
		if seen[address] {
			t.Fatalf("%s is given out twice", address)
		}
		seen[address] = true
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	for range 200 {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lis.Close() })
		conn, err := net.Dial("tcp", other.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	for address := range seen {
		lis, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = lis.Close()
	}
}
