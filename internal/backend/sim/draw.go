package sim

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/instanced/instanced/internal/instance"
)

// purpose separates the random numbers of different decisions.
type purpose uint64

const (
	drawID purpose = iota + 1
	drawDelay
	drawPrivateAddress
	drawPublicAddress
	drawMessage
	drawFault // and all above: one for each fault of the plan
)

// draw returns the random number for a seed, a purpose, an id and a counter: FNV-1a over
// the id, then the finalizer of SplitMix64.
func draw(seed uint64, p purpose, id instance.ID, counter uint64) uint64 {
	const offset, prime, gamma = 14695981039346656037, 1099511628211, 0x9e3779b97f4a7c15
	h := uint64(offset)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * prime
	}
	h = mix(h ^ mix(seed+gamma))
	h = mix(h ^ mix(uint64(p)*gamma))
	return mix(h ^ mix(counter+gamma))
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// unit turns a draw into a number of [0, 1).
func unit(n uint64) float64 {
	return math.Ldexp(float64(n>>11), -53)
}

// newID returns an id as EC2 makes them today: "i-0" and 16 hex digits.
func (b *Backend) newID() instance.ID {
	b.created++
	return instance.ID(fmt.Sprintf("i-0%016x", draw(b.config.Seed^b.idSalt, drawID, "", b.created)))
}

// privateAddress returns an address in 10.0.0.0/8, which the instance keeps.
func (b *Backend) privateAddress(id instance.ID) string {
	n := draw(b.config.Seed, drawPrivateAddress, id, 0)
	return fmt.Sprintf("10.%d.%d.%d", byte(n), byte(n>>8), 4+byte(n>>16)%250)
}

// publicAddress returns an address in 198.18.0.0/15, which is reserved (RFC 2544), so that
// no test ever connects to a real host. Each start draws a new one.
func (b *Backend) publicAddress(id instance.ID, transitions uint64) string {
	n := draw(b.config.Seed, drawPublicAddress, id, transitions)
	return netip.AddrFrom4([4]byte{198, 18 + byte(n&1), byte(n >> 8), 1 + byte(n>>16)%254}).String()
}
