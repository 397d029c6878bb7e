package journal

import (
	"container/heap"
	"strings"
	"sync"
	"time"
)

// tokenIndex is which tokens there are, whose they are, how large, and how old, as of
// what the writer has gathered. What they say is read from etcd when somebody asks.
type tokenIndex struct {
	mu    sync.Mutex
	byKey map[string]*indexedToken
	byAge tokensByAge
	total tokenUse
	// use is that of each principal that has tokens.
	use map[string]*tokenUse
}

// tokenUse is how many tokens are in use, and what they take.
type tokenUse struct {
	count int
	bytes int64
}

type indexedToken struct {
	key       string
	created   time.Time
	principal string
	bytes     int64
	// place is where it is in byAge.
	place int
}

func newTokenIndex() *tokenIndex {
	return &tokenIndex{byKey: map[string]*indexedToken{}, use: map[string]*tokenUse{}}
}

func (x *tokenIndex) get(key string) (created time.Time, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if known := x.byKey[key]; known != nil {
		return known.created, true
	}
	return time.Time{}, false
}

// inUse returns what all tokens take.
func (x *tokenIndex) inUse() tokenUse {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.total
}

// admits reports whether a principal may have more tokens. Each may have as many as it
// leaves to others: half of all if it is the only one, a third if there are two.
func (x *tokenIndex) admits(principal string, more, limit tokenUse) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	var own tokenUse
	if u := x.use[principal]; u != nil {
		own = *u
	}
	return own.count+x.total.count+2*more.count <= limit.count+1 &&
		own.bytes+x.total.bytes+2*more.bytes <= limit.bytes
}

// tokenStanding is how a principal stands against the limits.
type tokenStanding struct {
	own, total tokenUse
	// oldest is when the oldest token of all was created; zero when there is none.
	oldest time.Time
}

// standing returns how a principal stands. It takes the same however many tokens there are.
func (x *tokenIndex) standing(principal string) (s tokenStanding) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s.total = x.total
	if u := x.use[principal]; u != nil {
		s.own = *u
	}
	if len(x.byAge) > 0 {
		s.oldest = x.byAge[0].created
	}
	return s
}

// apply notes what becomes of tokens.
func (x *tokenIndex) apply(changes map[string]tokenChange) {
	for key, c := range changes {
		if c.deleted {
			x.remove(key)
		} else {
			x.put(key, c.created, c.principal, c.bytes)
		}
	}
}

// put notes a token, in place of the one with the same key.
func (x *tokenIndex) put(key string, created time.Time, principal string, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeLocked(x.byKey[key])
	known := &indexedToken{key: key, created: created, principal: principal, bytes: bytes}
	x.byKey[key] = known
	heap.Push(&x.byAge, known)
	u := x.use[principal]
	if u == nil {
		u = &tokenUse{}
		x.use[principal] = u
	}
	x.total.add(1, bytes)
	u.add(1, bytes)
}

func (x *tokenIndex) remove(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeLocked(x.byKey[key])
}

func (x *tokenIndex) removeLocked(known *indexedToken) {
	if known == nil {
		return
	}
	delete(x.byKey, known.key)
	heap.Remove(&x.byAge, known.place)
	x.total.add(-1, -known.bytes)
	u := x.use[known.principal]
	if u.add(-1, -known.bytes); u.count == 0 {
		delete(x.use, known.principal)
	}
}

// createdBefore returns up to limit tokens that were created before a time, oldest first.
func (x *tokenIndex) createdBefore(horizon time.Time, limit int) (oldest []*indexedToken) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(oldest) < limit && len(x.byAge) > 0 && x.byAge[0].created.Before(horizon) {
		oldest = append(oldest, heap.Pop(&x.byAge).(*indexedToken))
	}
	for _, known := range oldest {
		heap.Push(&x.byAge, known)
	}
	return oldest
}

// drop forgets tokens, unless they were put anew meanwhile.
func (x *tokenIndex) drop(tokens []*indexedToken) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, known := range tokens {
		if x.byKey[known.key] == known {
			x.removeLocked(known)
		}
	}
}

func (u *tokenUse) add(count int, bytes int64) {
	u.count += count
	u.bytes += bytes
}

// tokensByAge is a heap. Its order is that of the keys in etcd.
type tokensByAge []*indexedToken

func (a tokensByAge) Len() int { return len(a) }

func (a tokensByAge) Less(i, j int) bool {
	if c := a[i].created.Compare(a[j].created); c != 0 {
		return c < 0
	}
	return strings.Compare(a[i].key, a[j].key) < 0
}

func (a tokensByAge) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

func (a *tokensByAge) Push(x any) {
	known := x.(*indexedToken)
	known.place = len(*a)
	*a = append(*a, known)
}

func (a *tokensByAge) Pop() any {
	last := len(*a) - 1
	known := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	return known
}
