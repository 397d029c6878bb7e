package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// damagedPage is a page that is not as bbolt writes it.
func damagedPage(id uint64, format string, args ...any) error {
	return &damage{what: fmt.Sprintf("page %d of etcd's database", id), cause: fmt.Errorf(format, args...)}
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

// value reads up to limit bytes of the value from an offset on.
func (e *element) value(from, limit int64) ([]byte, error) {
	b, ok, err := e.node.bytes(e.begin+from, min(e.begin+from+limit, e.end))
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
