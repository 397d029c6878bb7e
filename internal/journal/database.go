package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
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

// damagedPage is a page that is not as bbolt writes it.
func damagedPage(id uint64, format string, args ...any) error {
	return &damage{what: fmt.Sprintf("page %d of etcd's database", id), cause: fmt.Errorf(format, args...)}
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

// readMeta reads the page size and the root from whichever of the two meta pages is the
// newer and is whole, as bbolt does.
func (d *database) readMeta() (root uint64, err error) {
	info, err := d.file.Stat()
	if err != nil {
		return 0, err
	}
	first := make([]byte, pageHeader+metaSize)
	found, newest := false, uint64(0)
	look := func(at int64) error {
		if _, err := d.file.ReadAt(first, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m := first[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		size, txid := int64(binary.LittleEndian.Uint32(m[8:])), binary.LittleEndian.Uint64(m[48:])
		if binary.LittleEndian.Uint32(m) != boltMagic || binary.LittleEndian.Uint32(m[4:]) != boltVersion ||
			binary.LittleEndian.Uint64(m[56:]) != sum.Sum64() || size < minPageSize || size > maxPageSize {
			return nil
		}
		if !found || txid > newest {
			found, newest, d.pageSize = true, txid, size
			root, d.end = binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
		}
		return nil
	}
	if err := look(0); err != nil {
		return 0, err
	}
	for size := int64(minPageSize); size <= maxPageSize; size *= 2 {
		if d.pageSize == 0 || d.pageSize == size {
			if err := look(size); err != nil {
				return 0, err
			}
		}
	}
	switch {
	case !found:
		return 0, &damage{what: "etcd's database", cause: errors.New("neither of its two meta pages is whole")}
	case uint64(info.Size()/d.pageSize) < d.end:
		return 0, &damage{what: "etcd's database", cause: fmt.Errorf("it has %d bytes, and should have %d pages of %d", info.Size(), d.end, d.pageSize)}
	}
	return root, nil
}

// node is one or more pages in a row. Of all but the first, only what is asked for is read.
type node struct {
	database *database
	page     uint64
	size     int64
	first    []byte
}

// bytes reads a part of the node. ok is false for what reaches beyond its end.
func (n *node) bytes(from, to int64) (b []byte, ok bool, err error) {
	switch {
	case from > to || to > n.size:
		return nil, false, nil
	case to <= int64(len(n.first)):
		return n.first[from:to:to], true, nil
	}
	b = make([]byte, to-from)
	return b, true, n.database.readAt(b, n.page, from)
}

// element is a key of a leaf, with the place of its value, or of a branch, with the page
// below it.
type element struct {
	key        []byte
	bucket     bool
	node       *node
	begin, end int64
	child      uint64
}

// value reads the value from an offset on, at most so much of it.
func (e *element) value(from, most int64) ([]byte, error) {
	b, ok, err := e.node.bytes(e.begin+from, min(e.begin+from+most, e.end))
	if err == nil && !ok {
		err = damagedPage(e.node.page, "a value reaches beyond its end")
	}
	return b, err
}

// tree verifies the tree below a page, whose keys are from low, and below high unless
// that is nil, and calls each for every element in order.
func (d *database) tree(page uint64, low, high []byte, depth int, each func(page uint64, e element) error) error {
	n, err := d.node(page)
	if err != nil {
		return err
	}
	if depth > maxTreeDepth {
		return damagedPage(page, "the tree is deeper than any can be")
	}
	return d.walk(n, low, high, depth, each)
}

// node reads the first of the pages of a node, which no other node has.
func (d *database) node(page uint64) (*node, error) {
	if page < 2 || page >= d.end {
		return nil, damagedPage(page, "there is no such page")
	}
	first := make([]byte, d.pageSize)
	if err := d.readAt(first, page, 0); err != nil {
		return nil, err
	}
	if id := binary.LittleEndian.Uint64(first); id != page {
		return nil, damagedPage(page, "it says that it is page %d", id)
	}
	overflow := uint64(binary.LittleEndian.Uint32(first[12:]))
	if page+overflow >= d.end || overflow*uint64(d.pageSize) > maxNode {
		return nil, damagedPage(page, "it goes on for %d pages", overflow)
	}
	for p := page; p <= page+overflow; p++ {
		if d.visited[p/64]&(1<<(p%64)) != 0 {
			return nil, damagedPage(p, "it is in the tree twice")
		}
		d.visited[p/64] |= 1 << (p % 64)
	}
	return &node{database: d, page: page, size: int64(1+overflow) * d.pageSize, first: first}, nil
}

// readAt reads from an offset in a page on.
func (d *database) readAt(b []byte, page uint64, offset int64) error {
	_, err := d.file.ReadAt(b, int64(page)*d.pageSize+offset)
	if errors.Is(err, io.EOF) {
		return damagedPage(page, "the file ends before it")
	}
	return err
}

// walk verifies one node, and what is below it.
func (d *database) walk(n *node, low, high []byte, depth int, each func(page uint64, e element) error) error {
	page := n.page
	flags, count := binary.LittleEndian.Uint16(n.first[8:]), int(binary.LittleEndian.Uint16(n.first[10:]))
	if flags != branchPage && flags != leafPage {
		return damagedPage(page, "it is neither a branch nor a leaf")
	}
	if flags == branchPage && count == 0 {
		return damagedPage(page, "it is a branch without anything below it")
	}
	var before []byte
	var following *element
	for i := range count {
		e := following
		if e == nil {
			var err error
			if e, err = n.element(i, flags); err != nil {
				return err
			}
		}
		if bytes.Compare(e.key, low) < 0 || high != nil && bytes.Compare(e.key, high) >= 0 ||
			i > 0 && bytes.Compare(e.key, before) <= 0 {
			return damagedPage(page, "element %d is out of order", i)
		}
		before = e.key
		if flags == leafPage {
			if err := each(page, *e); err != nil {
				return err
			}
			continue
		}
		next := high
		if following = nil; i+1 < count {
			var err error
			if following, err = n.element(i+1, flags); err != nil {
				return err
			}
			next = following.key
		}
		if err := d.tree(e.child, e.key, next, depth+1, each); err != nil {
			return err
		}
	}
	return nil
}

// element reads the i-th element of a node.
func (n *node) element(i int, flags uint16) (*element, error) {
	beyond := func(err error) error {
		if err != nil {
			return err
		}
		return damagedPage(n.page, "element %d reaches beyond its end", i)
	}
	at := pageHeader + int64(i)*leafElement
	fields, ok, err := n.bytes(at, at+leafElement)
	if !ok || err != nil {
		return nil, beyond(err)
	}
	e, valueSize := &element{node: n}, int64(0)
	if flags == leafPage {
		leaf := binary.LittleEndian.Uint32(fields)
		if leaf > bucketFlag {
			return nil, damagedPage(n.page, "element %d is of an unknown kind", i)
		}
		e.bucket = leaf == bucketFlag
		fields = fields[4:]
		valueSize = int64(binary.LittleEndian.Uint32(fields[8:]))
	} else {
		e.child = binary.LittleEndian.Uint64(fields[8:])
	}
	begin := at + int64(binary.LittleEndian.Uint32(fields))
	e.begin = begin + int64(binary.LittleEndian.Uint32(fields[4:]))
	e.end = e.begin + valueSize
	if begin == e.begin || e.end > n.size {
		return nil, beyond(nil)
	}
	if e.key, ok, err = n.bytes(begin, e.begin); !ok || err != nil {
		return nil, beyond(err)
	}
	return e, nil
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

// known reports damage for a key that nobody writes: nothing but journals is in there. A
// key of which a bit has flipped would be missing at its place without a word.
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
		return damagedPage(page, "it has a key %q, which nobody writes", key)
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
