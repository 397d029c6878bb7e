package journal

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
)

// batch is what the writer gathers for one transaction: at most one record of the
// log, and client tokens.
type batch struct {
	// record is what readers will see, nil without changes; encoded are its changes, and
	// value is how it is written, under key.
	record         *Batch
	encoded, value []byte
	key            string
	// known has the records that follow from the changes.
	known map[instance.ID]*Record
	// tokens has the values of the token keys to put, nil for those to delete.
	tokens     map[string][]byte
	tokenBytes int
	// waiting are the updates that are answered when the batch is written.
	waiting []waiting
}

// waiting is an update with its answer.
type waiting struct {
	update   *update
	position Position
	err      error
	// begun is true when parts of the update are in batches before this one.
	begun bool
}

func newPendingBatch() *batch {
	return &batch{known: map[instance.ID]*Record{}, tokens: map[string][]byte{}}
}

// reset empties the batch, to be used anew.
func (b *batch) reset() {
	clear(b.known)
	clear(b.tokens)
	clear(b.waiting)
	b.record, b.encoded, b.waiting, b.tokenBytes = nil, b.encoded[:0], b.waiting[:0], 0
}

// writes reports whether there is anything to write.
func (b *batch) writes() bool { return b.record != nil || len(b.tokens) > 0 }

// fits reports whether the batch can take what an update wrote. An empty batch
// takes anything.
func (b *batch) fits(tx *Tx, maxOps int) bool {
	if !b.writes() {
		return true
	}
	const others = 2 // the record, and the head
	return len(b.encoded)+b.tokenBytes+len(tx.encoded)+tx.tokenBytes <= maxRequestBytes &&
		others+len(b.tokens)+2*len(tx.tokens) <= maxOps
}

// add appends a change to the record, which is at a position, and expected to have
// about as many changes as size.
func (b *batch) add(e *entry, encoded []byte, p Position, size int) {
	if b.record == nil {
		b.record = newBatch(p, size)
	}
	b.record.add(e)
	b.encoded = append(b.encoded, encoded...)
	b.known[e.change.ID()] = &e.record
}

// addTokens adds what becomes of client tokens, and notes it in the index. A token
// that is created anew has another key than before.
func (b *batch) addTokens(tx *Tx, s *store, index *tokenIndex) {
	for token, c := range tx.tokens {
		created, exists := index.get(token)
		if exists && (c.deleted || !c.created.Equal(created)) {
			b.tokens[s.keys.tokenKey(created, token)] = nil
		}
		if !c.deleted {
			key := s.keys.tokenKey(c.created, token)
			b.tokens[key] = s.seal(c.value, 0, key)
		}
	}
	b.tokenBytes += tx.tokenBytes
	index.apply(tx.tokens)
}

// tokenOps returns the operations on client tokens.
func (b *batch) tokenOps(ops []clientv3.Op) []clientv3.Op {
	for key, value := range b.tokens {
		if value == nil {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, clientv3.OpPut(key, string(value)))
		}
	}
	return ops
}

// answer answers all who wait for the batch, with the error of the term when it
// could not be written.
func (b *batch) answer(failed error) {
	for _, x := range b.waiting {
		if failed != nil {
			x.update.fail(failed, x.begun)
		} else {
			x.update.answer(x.position, x.err)
		}
	}
}
