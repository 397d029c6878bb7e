package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// When the length of a record in etcd's write-ahead log leads beyond the end, etcd takes it
// for a write that a crash cut off, and forgets what follows. It then gives new entries
// the numbers of those that its database has already, and waits for ever for them to be
// applied. So the log is verified before etcd opens it.
//
// A file of the log is a sequence of records: a frame of 8 bytes with the length, the
// record, and what pads it to 8 bytes. A file that is full ends with its last record; the
// one that is written to goes on with zeros.
const frameSize = 8

// The types of records.
const (
	walMetadata = 1 + iota
	walEntry
	walState
	walChecksum
	walSnapshot
)

// walReader verifies the write-ahead log of an etcd of one member.
type walReader struct {
	file *os.File
	name string
	size int64
	// at is where the next record begins, and sum is the checksum of all before it.
	at  int64
	sum uint32
	// buffer has the record that was read last.
	buffer []byte
	// index and term belong to the last entry; index is 0 before the first.
	index, term uint64
}

// walRecord is a record that could be read, and whether its checksum is right. Its data is
// gone when another one is read.
type walRecord struct {
	kind  uint64
	sum   uint32
	data  []byte
	end   int64
	valid bool
}

// verifyWAL reads the log in a directory, and returns the number of its last entry.
// Errors are of type damage, or what the operating system says. Work is in proportion to
// the size of the log; memory to that of the largest record.
func verifyWAL(dir string) (last uint64, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		return 0, err
	}
	slices.Sort(files)
	r := &walReader{}
	for i, file := range files {
		if err := r.readFile(file, i == len(files)-1); err != nil {
			return 0, err
		}
	}
	return r.index, nil
}

func (r *walReader) damaged(format string, args ...any) error {
	return &damage{what: fmt.Sprintf("byte %d of the file %s of etcd's log", r.at, r.name), cause: fmt.Errorf(format, args...)}
}

func (r *walReader) readFile(path string, last bool) (err error) {
	if r.file, err = os.Open(path); err != nil {
		return err
	}
	defer func() { _ = r.file.Close() }()
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.name, r.size, r.at = filepath.Base(path), info.Size(), 0
	for r.at < r.size {
		frame, err := r.frame(r.at)
		if err != nil {
			return err
		}
		record, err := r.record(r.at, frame, r.sum)
		switch {
		case err != nil:
			return err
		case record.valid:
			if err := r.follow(record); err != nil {
				return err
			}
			r.at, r.sum = record.end, record.sum
		case last:
			return r.ends(frame, record)
		default:
			return r.damaged("the record has a wrong checksum or length")
		}
	}
	return nil
}

// frame reads the frame at a place, 0 where the file is too short for one.
func (r *walReader) frame(at int64) (uint64, error) {
	var b [frameSize]byte
	if _, err := r.file.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// record reads the record at a place, for which a frame and the checksum of all before it
// are given. Its end is 0 where there is none.
func (r *walReader) record(at int64, frame uint64, sum uint32) (record walRecord, err error) {
	size, padding := int64(frame<<8>>8), int64(0)
	if frame>>63 != 0 {
		padding = int64(frame >> 56 & 7)
	}
	begin := at + frameSize
	if size == 0 || size > r.size-begin-padding {
		return record, nil
	}
	r.buffer = slices.Grow(r.buffer[:0], 1)
	b := r.buffer[:1]
	if _, err := r.file.ReadAt(b, begin); err != nil {
		return record, err
	}
	if b[0] != 1<<3 { // the tag of the type: where there are only zeros, that is all to be read
		return record, nil
	}
	r.buffer = slices.Grow(r.buffer[:0], int(size))
	b = r.buffer[:size]
	if _, err := r.file.ReadAt(b, begin); err != nil {
		return record, err
	}
	fields, data, ok := readFields(b, 2, 3)
	if !ok {
		return record, nil
	}
	record = walRecord{kind: fields[1], sum: uint32(fields[2]), data: data, end: begin + size + padding}
	if record.kind == walChecksum {
		record.valid = sum == 0 || sum == record.sum
	} else {
		record.valid = crc32.Update(sum, castagnoli, data) == record.sum
	}
	return record, nil
}

// follow verifies that a record follows those before it: its type is not part of its
// checksum.
func (r *walReader) follow(record walRecord) error {
	switch record.kind {
	case walEntry:
		fields, _, ok := readFields(record.data, 3, 4)
		if !ok || r.index > 0 && fields[3] != r.index+1 || fields[2] < r.term {
			return r.damaged("the record is not the entry after entry %d", r.index)
		}
		r.term, r.index = fields[2], fields[3]
	case walState:
		fields, data, ok := readFields(record.data, 3, 0)
		if !ok || data != nil || fields[1] < r.term {
			return r.damaged("the record is not a state after entry %d", r.index)
		}
	case walMetadata, walChecksum, walSnapshot:
	default:
		return r.damaged("there is no record of type %d", record.kind)
	}
	return nil
}

// readFields reads a message of numbers in the fields up to one, and of bytes in a field,
// each of which occurs once at most.
func readFields(b []byte, numbers, bytes protowire.Number) (fields [4]uint64, data []byte, ok bool) {
	seen := 0
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field > max(numbers, bytes) || seen&(1<<field) != 0 {
			return fields, nil, false
		}
		seen |= 1 << field
		b = b[n:]
		switch {
		case field <= numbers && kind == protowire.VarintType:
			fields[field], n = protowire.ConsumeVarint(b)
		case field == bytes && kind == protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			return fields, nil, false
		}
		if n < 0 {
			return fields, nil, false
		}
		b = b[n:]
	}
	return fields, data, true
}

// ends decides about the place where the file that is written to has no valid record: it
// is where the log ends, perhaps in a write that a crash cut off, unless the log goes on
// behind it, or would without the flip of a single bit in the frame.
func (r *walReader) ends(frame uint64, record walRecord) error {
	if record.end > 0 {
		next, err := r.frame(record.end)
		if err != nil {
			return err
		}
		following, err := r.record(record.end, next, record.sum)
		if err != nil {
			return err
		}
		if following.valid && following.kind != walChecksum {
			return r.damaged("the record has a wrong checksum, and others follow it")
		}
	}
	for bit := range 64 {
		other, err := r.record(r.at, frame^1<<bit, r.sum)
		if err != nil {
			return err
		}
		if other.valid && other.kind != walChecksum {
			return r.damaged("the length of the record is wrong")
		}
	}
	return nil
}
