package dispatch

import "math/rand/v2"

// tree holds tenants in the order of a key. It is a treap whose nodes know the number and the sum
// of the keys below them: each method takes O(log n) steps, which it counts.
type tree struct {
	root  *node
	steps *int
}

type node struct {
	key         float64
	tenant      *tenant
	priority    uint64
	left, right *node
	count       int
	sum         float64 // of the keys
}

func (n *node) size() (count int, sum float64) {
	if n == nil {
		return 0, 0
	}
	return n.count, n.sum
}

func (n *node) updated() *node {
	lc, ls := n.left.size()
	rc, rs := n.right.size()
	n.count, n.sum = lc+rc+1, ls+n.key+rs
	return n
}

// before reports whether n belongs before a tenant with a key.
func (n *node) before(key float64, t *tenant) bool {
	return n.key < key || n.key == key && n.tenant.seq < t.seq
}

func (tr *tree) len() int { count, _ := tr.root.size(); return count }

func (tr *tree) sum() float64 { _, sum := tr.root.size(); return sum }

func (tr *tree) insert(key float64, t *tenant) {
	n := &node{key: key, tenant: t, priority: rand.Uint64()} //nolint:gosec // to balance a tree takes no secret
	left, right := tr.split(tr.root, key, t)
	tr.root = tr.merge(tr.merge(left, n.updated()), right)
}

// remove removes a tenant that was inserted with that key.
func (tr *tree) remove(key float64, t *tenant) {
	tr.root = tr.removeFrom(tr.root, key, t)
}

func (tr *tree) removeFrom(n *node, key float64, t *tenant) *node {
	*tr.steps++
	switch {
	case n.tenant == t:
		return tr.merge(n.left, n.right)
	case n.before(key, t):
		n.right = tr.removeFrom(n.right, key, t)
	default:
		n.left = tr.removeFrom(n.left, key, t)
	}
	return n.updated()
}

// split divides a tree into what is before a tenant with a key, and the rest.
func (tr *tree) split(n *node, key float64, t *tenant) (left, right *node) {
	if n == nil {
		return nil, nil
	}
	*tr.steps++
	if n.before(key, t) {
		n.right, right = tr.split(n.right, key, t)
		return n.updated(), right
	}
	left, n.left = tr.split(n.left, key, t)
	return left, n.updated()
}

func (tr *tree) merge(left, right *node) *node {
	switch {
	case left == nil:
		return right
	case right == nil:
		return left
	}
	*tr.steps++
	if left.priority > right.priority {
		left.right = tr.merge(left.right, right)
		return left.updated()
	}
	right.left = tr.merge(left, right.left)
	return right.updated()
}

// min returns the tenant with the smallest key; nil when there is none.
func (tr *tree) min() (*tenant, float64) {
	n := tr.root
	if n == nil {
		return nil, 0
	}
	for ; n.left != nil; n = n.left {
		*tr.steps++
	}
	return n.tenant, n.key
}

// sumCapped returns the sum of the keys, where those above a limit count as the limit.
func (tr *tree) sumCapped(limit float64) (sum float64) {
	for n := tr.root; n != nil; {
		*tr.steps++
		if n.key > limit {
			count, _ := n.right.size()
			sum += limit * float64(count+1)
			n = n.left
			continue
		}
		_, smaller := n.left.size()
		sum += smaller + n.key
		n = n.right
	}
	return sum
}
