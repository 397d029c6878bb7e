package journal

// Stats is how large the journal is.
type Stats struct {
	// Batches and Bytes are the history that is kept.
	Batches uint64
	Bytes   uint64
	// RingBatches and RingBytes are what of it is in memory.
	RingBatches int
	RingBytes   int64
	Instances   int
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
	return Stats{
		Batches:     v.head.Seq - v.oldest,
		Bytes:       v.bytes - v.oldestBytes,
		RingBatches: len(v.ring.batches),
		RingBytes:   v.ring.used.Load(),
		Instances:   len(v.records),
	}
}

// kept returns the bytes of the history that is kept.
func (v *view) kept() uint64 { return v.stats().Bytes }
