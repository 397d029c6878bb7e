package journal

import (
	"fmt"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// Tx is what the function of an update reads from and writes to. It sees all that
// was recorded before it, and what it has written itself. It is of no use after
// the function has returned, and belongs to its goroutine.
type Tx struct {
	writer *writer
	// position is what Position returns; asked is whether it did.
	position Position
	asked    bool

	entries []*entry
	// encoded has the entries as they are written, and ends where each of them ends.
	encoded []byte
	ends    []int
	known   map[instance.ID]*Record

	tokens     map[string]tokenChange
	tokenBytes int
	// newTokens are those that replace none.
	newTokens tokenUse

	err error
}

func (tx *Tx) reset(position Position) {
	clear(tx.entries)
	clear(tx.known)
	clear(tx.tokens)
	tx.entries, tx.encoded, tx.ends = tx.entries[:0], tx.encoded[:0], tx.ends[:0]
	tx.tokenBytes, tx.newTokens = 0, tokenUse{}
	tx.position, tx.asked, tx.err = position, false, nil
}

// Get returns what is known of an instance.
func (tx *Tx) Get(id instance.ID) (Record, bool) {
	if record := tx.lookup(id); record != nil && record.Instance != nil {
		return *record, true
	}
	return Record{}, false
}

func (tx *Tx) lookup(id instance.ID) *Record {
	if record, ok := tx.known[id]; ok {
		return record
	}
	return tx.writer.lookup(id)
}

// Append records a change. After is the instance as it is to be known from now
// on, nil to remove it; then Before says which one. Type and Before are filled in
// from what is known. Removing an instance that is not known records nothing.
func (tx *Tx) Append(c instance.Change) {
	if c.After == nil && c.Before == nil {
		tx.fail("a change without an instance")
		return
	}
	id := c.ID()
	c.Before = nil
	known := tx.lookup(id)
	if known != nil {
		c.Before = known.Instance
		c.After = share(c.After, c.Before)
	}
	switch {
	case c.Before == nil && c.After == nil:
		return
	case c.Before == nil:
		c.Type = instance.ChangeAdded
	case c.After == nil:
		c.Type = instance.ChangeRemoved
	case c.Before.State != c.After.State:
		c.Type = instance.ChangeState
	default:
		c.Type = instance.ChangeAttributes
	}
	e := newEntry(c)
	e.record.inheritCause(&e.change, known)
	e.place(tx.position, len(tx.entries)) // for now; see batch.add
	tx.entries = append(tx.entries, e)
	tx.encoded = codec.AppendChange(tx.encoded, &e.change)
	tx.ends = append(tx.ends, len(tx.encoded))
	if size := len(tx.encoded) - tx.entryStart(len(tx.ends)-1); size > maxRequestBytes {
		tx.fail(fmt.Sprintf("a change of %d bytes, which is more than %d", size, maxRequestBytes))
	}
	tx.known[id] = &e.record
}

// PutToken writes a client token, in place of the one with the same key. Without
// a CreatedAt it gets that of the token it replaces, or else the present. The update
// fails with [instance.ReasonTooManyClientTokens] when a new token is beyond the share of its principal:
// it may have as many tokens as it leaves free of [Config.MaxClientTokens], and as many
// bytes as it leaves free of a quarter of what the database may take.
func (tx *Tx) PutToken(t Token) {
	term := tx.writer.term
	created, replaces := tx.token(t.Key)
	if t.CreatedAt.IsZero() {
		t.CreatedAt = time.Now()
		if replaces {
			t.CreatedAt = created
		}
	}
	s := term.journal.store
	c := tokenChange{
		created:   codec.Time(codec.Nanoseconds(t.CreatedAt)),
		principal: t.Principal,
		value:     appendToken(s.reserveSeal(nil), &t, s.logID(), s.seals()), // both from format 4 on
	}
	if len(c.value)+len(t.Key) > maxRequestBytes {
		tx.fail(fmt.Sprintf("a client token of %d bytes, which is more than %d", len(c.value), maxRequestBytes))
		return
	}
	c.bytes = countedBytes(len(s.keys.tokenKey(c.created, t.Key))+len(c.value), &t)
	if !replaces {
		tx.newTokens.add(1, c.bytes)
		limit := tokenUse{term.journal.config.MaxClientTokens, term.journal.budget.tokens()}
		if !term.tokens.admits(t.Principal, tx.newTokens, limit) {
			tx.err = errTooManyTokens(t.Principal, term.tokens.standing(t.Principal), tx.newTokens, limit, term.journal.config.TokenLifetime)
			return
		}
	}
	tx.tokenBytes += len(c.value) + len(t.Key)
	tx.tokens[t.Key] = c
}

// DeleteToken deletes a client token, if there is one with that key.
func (tx *Tx) DeleteToken(key string) {
	if _, ok := tx.token(key); ok {
		tx.tokens[key] = tokenChange{deleted: true}
	}
}

// token returns when the token with that key was created, if there is one.
func (tx *Tx) token(key string) (created time.Time, ok bool) {
	if c, ok := tx.tokens[key]; ok {
		return c.created, !c.deleted
	}
	return tx.writer.term.tokens.get(key)
}

// Position returns the position that the update will return, so that it can be
// part of what is written: that of the batch with the last of its changes or, if
// it records none, that of the batch with the last change it has seen. To keep
// that promise the function may be run once more.
func (tx *Tx) Position() Position {
	tx.asked = true
	return tx.position
}

// Head returns the position behind all that was recorded before this update, by
// earlier updates of the same batch too.
func (tx *Tx) Head() Position { return tx.writer.head() }

// Err returns why what was written so far cannot be recorded; nil if it can.
func (tx *Tx) Err() error { return tx.err }

func (tx *Tx) fail(what string) {
	tx.err = &instance.Error{Kind: instance.KindInternal, Message: "the journal was asked to record " + what}
}

// parts returns how many batches the changes take, beginning with an empty one.
func (tx *Tx) parts() int {
	parts, start := 0, 0
	for i, end := range tx.ends {
		if parts == 0 || end-start > maxRequestBytes {
			parts++
			start = tx.entryStart(i)
		}
	}
	return parts
}

// entryStart returns where an entry begins in encoded.
func (tx *Tx) entryStart(i int) int {
	if i == 0 {
		return 0
	}
	return tx.ends[i-1]
}
