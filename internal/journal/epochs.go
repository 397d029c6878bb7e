package journal

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"sort"
	"time"
)

// epochs are the stretches of the log, in order. Each reaches to the batch
// before the first of the next, the last one to the end. The first one begins
// with what is kept, or at 0, the place before the first batch. A list is never
// modified.
type epochs []epoch

type epoch struct {
	id        uint64
	first     uint64
	startedAt time.Time
}

// randomID returns an id that no other epoch has, copies of the log included.
func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return binary.LittleEndian.Uint64(b[:])
}

// at returns the position with a sequence number. ok is false when it lies before
// the first epoch.
func (g epochs) at(seq uint64) (p Position, ok bool) {
	i := sort.Search(len(g), func(i int) bool { return g[i].first > seq }) - 1
	if i < 0 {
		return Position{Seq: seq}, false
	}
	return Position{Epoch: g[i].id, Seq: seq}, true
}

// cover reports whether the position is of this log, or would be if the log
// reached as far.
func (g epochs) cover(p Position) bool {
	own, ok := g.at(p.Seq)
	return ok && own == p
}

// last returns the epoch that is being written.
func (g epochs) last() epoch {
	if len(g) == 0 {
		return epoch{}
	}
	return g[len(g)-1]
}

// withNew returns the list with a new epoch that begins at first. An older epoch
// that begins there too has no batch, and is dropped.
func (g epochs) withNew(first uint64, now time.Time) epochs {
	next := slices.DeleteFunc(slices.Clone(g), func(o epoch) bool { return o.first >= first })
	return append(next, epoch{id: randomID(), first: first, startedAt: now})
}

// since returns the list without the epochs that end before seq.
func (g epochs) since(seq uint64) epochs {
	for len(g) > 1 && g[1].first <= seq {
		g = g[1:]
	}
	return g
}
