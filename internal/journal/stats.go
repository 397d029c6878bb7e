package journal

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Stats is how large the journal is, and what it spans.
type Stats struct {
	// Written is the size of all history that was ever recorded, in bytes.
	Written uint64
	// Batches and Bytes are the history that is kept.
	Batches uint64
	Bytes   uint64
	// Head and Oldest are the numbers of the newest batch and of the oldest one that is kept, and
	// NewestAt and OldestAt are when they were recorded; zero if there are none.
	Head, Oldest       uint64
	NewestAt, OldestAt time.Time
	// OwnerSince is when the present or last owner began its term.
	OwnerSince time.Time
	// RingBatches and RingBytes are what of it is in memory.
	RingBatches int
	RingBytes   int64
	Instances   int
	// InstancesIn counts the instances by state.
	InstancesIn [instance.StateStopped + 1]int
	// ClientTokens are those in use, and ClientTokenBytes is what they take in etcd, with
	// their keys and what is kept free for answers. Only the owner knows; elsewhere they are 0.
	ClientTokens     int
	ClientTokenBytes int64
}

// Stats returns how large the journal is.
func (j *Journal) Stats() Stats {
	s := j.view.stats()
	if t := j.currentTerm(); t != nil {
		use := t.tokens.inUse()
		s.ClientTokens, s.ClientTokenBytes = use.count, use.bytes
	}
	return s
}

func (v *view) stats() Stats {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Stats{
		Written:     v.bytes,
		Batches:     v.head.Seq - v.oldest,
		Bytes:       v.bytes - v.oldestBytes,
		Head:        v.head.Seq,
		NewestAt:    v.recordedAt,
		OldestAt:    v.oldestAt,
		OwnerSince:  v.epochs.last().startedAt,
		RingBatches: len(v.ring.batches),
		RingBytes:   v.ring.used.Load(),
		Instances:   len(v.records),
		InstancesIn: v.states,
	}
	if s.Batches > 0 {
		s.Oldest = v.oldest + 1
	}
	return s
}

// kept returns the bytes of the history that is kept.
func (v *view) kept() uint64 { return v.stats().Bytes }
