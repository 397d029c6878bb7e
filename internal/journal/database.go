package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// etcd panics, often in a goroutine of its own, when a page of its database is not what
// it should be, and it serves some such pages without a word. So the structure of the
// file is verified before etcd opens it: every page that can be reached, its order, and
// in which revision each key is. What the values say is verified when they are read.
//
// The file is a bbolt database: pages of a fixed size, of which each tree node takes one
// or more in a row; integers are of the machine's order, which is little endian wherever
// this runs.
const (
	pageHeader    = 16 // id uint64, flags uint16, count uint16, overflow uint32
	leafElement   = 16 // flags uint32, pos uint32, key size uint32, value size uint32
	branchElement = 16 // pos uint32, key size uint32, page uint64
	bucketHeader  = 16 // root page uint64, sequence uint64
	metaSize      = 64

	branchPage, leafPage = 0x01, 0x02
	bucketFlag           = 0x01

	boltMagic, boltVersion = 0xED0CDAED, 2
	minPageSize            = 1 << 9
	maxPageSize            = 1 << 16
	maxTreeDepth           = 32
	// maxNode is more than a node has: a few values, of 1.5 MiB at most.
	maxNode = 32 << 20
)

// database is the file of an etcd while it is verified.
type database struct {
	file     *os.File
	pageSize int64
	// end is the number of pages in use, and visited has a bit for each that was seen.
	end     uint64
	visited []uint64

	prefix string
	// others has a key of each prefix that is not the journal's, until its meta is seen.
	others map[string]string
	metas  map[string]bool
	// applied is the entry of the log that is applied last, 0 if it does not say.
	applied uint64
}

// verifyDatabase reads the database at a path and returns which entry of etcd's log it
// reflects. Errors are of type damage, or what the operating system says. Work is in
// proportion to the size of the file; memory to the largest of its nodes.
func verifyDatabase(path string, k *keys) (applied uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	d := &database{file: f, prefix: k.prefix, others: map[string]string{}, metas: map[string]bool{}}
	root, err := d.readMeta()
	if err != nil {
		return 0, err
	}
	d.visited = make([]uint64, d.end/64+1)
	err = d.tree(root, nil, nil, 0, func(page uint64, e element) error {
		if !e.bucket {
			return damagedPage(page, "there is a value %q beside the buckets", e.key)
		}
		return d.bucket(page, e)
	})
	if err != nil {
		return 0, err
	}
	for prefix, key := range d.others {
		if !d.metas[prefix] {
			return 0, &damage{what: "a key of etcd's database", cause: fmt.Errorf("there is no log that %q belongs to", key)}
		}
	}
	return d.applied, nil
}

// bucket verifies one of the buckets.
func (d *database) bucket(page uint64, e element) error {
	value, err := e.value(0, e.end-e.begin)
	if err != nil {
		return err
	}
	if len(value) < bucketHeader {
		return damagedPage(page, "the bucket %q has no root", e.key)
	}
	each := func(page uint64, e element) error {
		if e.bucket {
			return damagedPage(page, "there is a bucket %q in a bucket", e.key)
		}
		return nil
	}
	switch string(e.key) {
	case "key":
		each = d.revision
	case "meta":
		each = func(_ uint64, e element) error {
			value, err := e.value(0, e.end-e.begin)
			if string(e.key) == "consistent_index" && len(value) == 8 {
				d.applied = binary.BigEndian.Uint64(value)
			}
			return err
		}
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return d.tree(root, nil, nil, 0, each)
	}
	if len(value) < bucketHeader+pageHeader {
		return damagedPage(page, "the bucket %q has no page", e.key)
	}
	inline := value[bucketHeader:]
	if flags := binary.LittleEndian.Uint16(inline[8:]); flags != leafPage {
		return damagedPage(page, "the bucket %q is no leaf", e.key)
	}
	return d.walk(&node{database: d, page: page, size: int64(len(inline)), first: inline}, nil, nil, 0, each)
}

// A key of the bucket "key" is a revision: 8 bytes, '_', 8 bytes and, where that deletes
// a key, 't'. Its value is a mvccpb.KeyValue.
const (
	revisionSize  = 17
	tombstoneSize = 18
)

// revision verifies one revision of one key.
func (d *database) revision(page uint64, e element) error {
	deletes := len(e.key) == tombstoneSize && e.key[revisionSize] == 't'
	if e.bucket || !deletes && len(e.key) != revisionSize || e.key[8] != '_' {
		return damagedPage(page, "%x is not a revision", e.key)
	}
	revision := binary.BigEndian.Uint64(e.key)
	key, modified, ok, err := readKeyValue(&e)
	if err != nil {
		return err
	}
	if !ok || deletes != (modified == 0) || !deletes && modified != revision {
		return damagedPage(page, "revision %d is not that of a key with a value", revision)
	}
	return d.known(page, key)
}

// readKeyValue returns of a mvccpb.KeyValue the key and its revision, and whether it is
// all that etcd writes and nothing else. What the key has as its value is not read.
func readKeyValue(e *element) (key []byte, modified uint64, ok bool, err error) {
	const enough = 4 << 10 // for all before the value, with a key of more than a client token has
	b, err := e.value(0, enough)
	if err != nil {
		return nil, 0, false, err
	}
	seen := 0
	for at := int64(0); at < e.end-e.begin; {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field > 6 || seen&(1<<field) != 0 {
			return nil, 0, false, nil
		}
		seen |= 1 << field
		b = b[n:]
		at += int64(n)
		var number uint64
		switch {
		case field == 1 && kind == protowire.BytesType:
			key, n = protowire.ConsumeBytes(b)
		case field == 5 && kind == protowire.BytesType:
			number, n = protowire.ConsumeVarint(b)
			if n < 0 || number > uint64(e.end-e.begin-at-int64(n)) {
				return nil, 0, false, nil
			}
			at += int64(n) + int64(number)
			if b, err = e.value(at, enough); err != nil {
				return nil, 0, false, err
			}
			continue
		case field != 1 && field != 5 && kind == protowire.VarintType:
			if number, n = protowire.ConsumeVarint(b); field == 3 {
				modified = number
			}
		default:
			return nil, 0, false, nil
		}
		if n < 0 {
			return nil, 0, false, nil
		}
		b = b[n:]
		at += int64(n)
	}
	return key, modified, len(key) > 0, nil
}

// known reports damage for a key that no journal writes, since the database has nothing else. A
// key with a flipped bit would otherwise be missing silently.
func (d *database) known(page uint64, key []byte) error {
	if rest, ok := bytes.CutPrefix(key, []byte(d.prefix)); ok && knownKey(rest) {
		return nil
	}
	prefix, ok := bytes.CutSuffix(key, []byte("/meta"))
	if ok {
		d.metas[string(prefix)] = true
		return nil
	}
	end := len(key)
	for _, room := range []string{"/control/", "/log/", "/instances/", "/tokens/"} {
		if i := bytes.Index(key, []byte(room)); i >= 0 {
			end = min(end, i)
		}
	}
	if end == len(key) || !knownKey(key[end+1:]) {
		return damagedPage(page, "it has a key %q, which no journal writes", key)
	}
	if prefix := key[:end]; d.others[string(prefix)] == "" {
		d.others[string(prefix)] = string(key)
	}
	return nil
}

// knownKey reports whether what follows the prefix in a key can be one of newKeys.
func knownKey(rest []byte) bool {
	room, name, _ := strings.Cut(string(rest), "/")
	switch room {
	case "meta":
		return name == ""
	case "control":
		return name == "generations" || name == "owner" || name == "head" || name == "checkpoint"
	case "log":
		return len(name) == seqDigits && strings.Trim(name, "0123456789") == ""
	case "instances":
		return name != ""
	case "tokens":
		age, _, ok := strings.Cut(name, "/")
		return ok && len(age) == 16 && strings.Trim(age, "0123456789abcdef") == ""
	}
	return false
}
