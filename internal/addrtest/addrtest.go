// Package addrtest gives tests addresses on which they may listen when they like: later,
// again after a kill, or never. A port that was free a moment ago is not enough for that,
// since the system may give it to whoever connects or listens meanwhile.
package addrtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
)

// minPort and maxPort bound the ports, below the system's ephemeral ports: a client that dials
// an ephemeral port without a listener may connect to itself.
const minPort, maxPort = 20000, 32000

// host is a loopback address for this process alone, where all of 127.0.0.0/8 is loopback, as
// on Linux: no other test listens there or connects from there.
var host = sync.OnceValue(func() string {
	pid := os.Getpid()
	own := net.IPv4(127, byte(1+pid>>16&0x7f), byte(pid>>8), byte(pid)).String()
	lis, err := net.Listen("tcp", own+":0")
	if err != nil {
		return "127.0.0.1"
	}
	_ = lis.Close()
	return own
})

// given has the addresses that were given out.
var given sync.Map

// Free returns an address on loopback, with its port, without a listener. It never
// returns the same one twice in a process.
func Free(t testing.TB) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("%s:%d", host(), minPort+rand.N(maxPort-minPort)) //nolint:gosec // any port will do
		if _, taken := given.LoadOrStore(address, true); taken {
			continue
		}
		if lis, err := net.Listen("tcp", address); err == nil {
			_ = lis.Close()
			return address
		}
	}
	t.Fatal("there is no free address")
	return ""
}
