package journal

import "sync"

// once is a place for what is made of a record once, for all who ask.
type once struct {
	made  sync.Once
	bytes []byte
}

// Once returns what the first caller's function made, for all callers of this record as
// it stands in a snapshot: the one encoding that all snapshots share until the instance
// changes. It is not to be modified.
func (r *Record) Once(encode func() []byte) []byte {
	if r.once == nil {
		return encode()
	}
	r.once.made.Do(func() { r.once.bytes = encode() })
	return r.once.bytes
}
