package journal

import "github.com/instanced/instanced/internal/journal/codec"

// decodeBatch reads a LogRecord, the value of the log's key with that number.
func decodeBatch(seq uint64, value []byte) (*Batch, codec.Header, error) {
	h, changes, err := codec.Decompress(value)
	if err != nil {
		return nil, codec.Header{}, err
	}
	b, err := decodeChanges(seq, h, changes)
	return b, h, err
}

// decodeChanges reads the changes of a decompressed LogRecord.
func decodeChanges(seq uint64, h codec.Header, message []byte) (*Batch, error) {
	changes, err := codec.Changes(message)
	if err != nil {
		return nil, err
	}
	b := newBatch(Position{Epoch: h.Epoch, Seq: seq}, len(changes))
	b.RecordedAt, b.Bytes = h.RecordedAt, len(message)
	for _, wire := range changes {
		// Each change has strings of its own: a record keeps its last change in memory, and
		// must not keep a whole batch.
		c, err := codec.DecodeChange(wire)
		if err != nil {
			return nil, err
		}
		b.add(newEntry(c))
	}
	return b, nil
}

// appendRecord appends a record as the checkpoint stores it.
func appendRecord(b []byte, r *Record) []byte {
	return codec.AppendRecord(b, &codec.Record{
		Instance: r.Instance, Previous: r.Previous, Cause: r.Cause, Source: r.Source, ChangedAt: r.ChangedAt,
		Epoch: r.Position.Epoch, Seq: r.Position.Seq, Index: r.Index,
	})
}

// decodeRecord reads what appendRecord wrote.
func decodeRecord(value []byte) (*Record, error) {
	r, err := codec.DecodeRecord(value)
	if err != nil {
		return nil, err
	}
	return &Record{
		Instance: r.Instance, Previous: r.Previous, Cause: r.Cause, Source: r.Source, ChangedAt: r.ChangedAt,
		Position: Position{Epoch: r.Epoch, Seq: r.Seq}, Index: r.Index,
		memo: new(memo[[]byte]),
	}, nil
}
