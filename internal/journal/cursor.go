package journal

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"sync/atomic"

	"github.com/instanced/instanced/internal/instance"
)

// A cursor is base64url without padding of: a version byte, the log id, the
// epoch, the sequence number, and a CRC-32 of all that. Integers are big
// endian.
const (
	cursorVersion = 1
	cursorSize    = 1 + logIDSize + 8 + 8 + 4
	logIDSize     = 16
)

// cursorEncoding is strict, so that each position has one cursor only.
var cursorEncoding = base64.RawURLEncoding.Strict()

type logID [logIDSize]byte

// Cursor returns the position as text that stands for it for as long as the log
// exists.
func (j *Journal) Cursor(p Position) string { return j.cursors.get(j.view.logID(), p) }

// cursorCache has the most recent cursors: many callers are told the cursors of the same few
// positions near the head.
type cursorCache [8]atomic.Pointer[cachedCursor]

type cachedCursor struct {
	id       logID
	position Position
	cursor   string
}

func (c *cursorCache) get(id logID, p Position) string {
	place := &c[p.Seq%uint64(len(c))]
	if known := place.Load(); known != nil && known.position == p && known.id == id {
		return known.cursor
	}
	made := &cachedCursor{id, p, encodeCursor(id, p)}
	place.Store(made)
	return made.cursor
}

func encodeCursor(id logID, p Position) string {
	b := make([]byte, 0, cursorSize)
	b = append(b, cursorVersion)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, p.Epoch)
	b = binary.BigEndian.AppendUint64(b, p.Seq)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return cursorEncoding.EncodeToString(b)
}

func decodeCursor(cursor string) (id logID, p Position, err error) {
	var b [cursorSize]byte
	if len(cursor) != cursorEncoding.EncodedLen(cursorSize) {
		return id, p, errUnreadable("it has the wrong length")
	}
	if _, err := cursorEncoding.Decode(b[:], []byte(cursor)); err != nil {
		return id, p, errUnreadable("it is not base64url text")
	}
	sum := len(b) - 4
	if binary.BigEndian.Uint32(b[sum:]) != crc32.ChecksumIEEE(b[:sum]) {
		return id, p, errUnreadable("its checksum is wrong")
	}
	if b[0] != cursorVersion {
		return id, p, errUnreadable("it is of another version")
	}
	copy(id[:], b[1:])
	p.Epoch = binary.BigEndian.Uint64(b[1+logIDSize:])
	p.Seq = binary.BigEndian.Uint64(b[1+logIDSize+8:])
	return id, p, nil
}

func errUnreadable(why string) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindInvalid,
		Reason:  instance.ReasonCursorUnreadable,
		Message: "the cursor is unreadable: " + why + "; use a cursor as it was received, unchanged and whole",
	}
}

// Resolve returns the position that a cursor stands for. A cursor that this
// process has not seen yet is looked for in etcd, and Resolve returns when this
// process has caught up with it. Errors, all of type [instance.Error] unless ctx
// ended: [instance.ReasonCursorUnreadable], [instance.ReasonCursorOfOtherLog],
// [instance.ReasonCursorRolledBack], [instance.ReasonCursorAhead], [instance.ReasonCursorExpired],
// [instance.ReasonJournalUnavailable].
func (j *Journal) Resolve(ctx context.Context, cursor string) (Position, error) {
	id, p, err := decodeCursor(cursor)
	if err != nil {
		return Position{}, err
	}
	if err := j.view.check(id, p); err != nil && err.Reason != instance.ReasonCursorExpired {
		if err := j.catchUpNow(ctx); err != nil { // this process may be behind the log
			return Position{}, err
		}
	}
	if err := j.view.check(id, p); err != nil {
		return Position{}, err
	}
	return p, nil
}

// check returns why a position of the log of that id cannot be resumed from.
func (v *view) check(id logID, p Position) *instance.Error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if id != v.id {
		return errOutOfRange(instance.ReasonCursorOfOtherLog, "the cursor is of another log")
	}
	return v.checkLocked(p)
}

// checkLocked is check for a position of this log.
func (v *view) checkLocked(p Position) *instance.Error {
	switch covered := v.epochs.cover(p); {
	case p.Seq < v.oldest:
		return v.errExpiredLocked()
	case !covered:
		return errRolledBack()
	case p.Seq > v.head.Seq:
		return errOutOfRange(instance.ReasonCursorAhead, "the log does not reach as far as the cursor")
	}
	return nil
}

func (v *view) errExpiredLocked() *instance.Error {
	oldest, _ := v.epochs.at(v.oldest)
	err := errOutOfRange(instance.ReasonCursorExpired, "what follows the cursor is no longer kept")
	err.Metadata = map[string]string{MetadataOldestCursor: encodeCursor(v.id, oldest)}
	return err
}

func errRolledBack() *instance.Error {
	return errOutOfRange(instance.ReasonCursorRolledBack, "what the cursor points to is no longer part of the log, which was restored from an older copy")
}

func errOutOfRange(reason, message string) *instance.Error {
	return &instance.Error{Kind: instance.KindOutOfRange, Reason: reason, Message: message}
}
