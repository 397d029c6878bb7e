package ec2

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// mostIDs is how many instances a call is for at most. It is documented for
	// TerminateInstances; EC2 says when it takes fewer.
	mostIDs = 1000
	// overtake is how long a call may take before the next of its kind goes out beside it.
	overtake = time.Second
	// mostRounds is how many batches of a kind are on their way at most.
	mostRounds = 4
	// reserved is the part of a request bucket that is kept for real stops and
	// terminations: reboots and dry runs leave it alone.
	reserved = 0.2
)

// desk gathers the calls of one verb into batches. The lock of the backend guards it.
type desk struct {
	verb instance.Verb
	// requests has a token for each call; StopInstances and RebootInstances share one.
	requests *bucket
	// instances has a token for each instance of a call; nil for RebootInstances.
	instances *bucket
	// most is how many instances EC2 is known to take in one call.
	most     int
	lanes    map[kind]*lane
	accounts map[string]*account
	clock    float64 // virtual time, in calls
	timer    *time.Timer
}

// lane holds the calls of one kind.
type lane struct {
	kind
	waiting []*caller // in the order of arrival
	rounds  int       // on their way
	newest  time.Time // when the last of them began
}

func newDesk(verb instance.Verb, requests, instances *bucket, pump func(*desk)) *desk {
	d := &desk{
		verb:      verb,
		requests:  requests,
		instances: instances,
		most:      mostIDs,
		lanes:     make(map[kind]*lane),
		accounts:  make(map[string]*account),
	}
	d.timer = time.AfterFunc(time.Hour, func() { pump(d) })
	d.timer.Stop()
	return d
}

// reserve is how many request tokens a call of a kind leaves untouched.
func (d *desk) reserve(k kind) float64 {
	urgent := k.verb == instance.VerbStop || k.verb == instance.VerbTerminate
	if k.dryRun == 0 && urgent || k.verb == instance.VerbStart {
		return 0
	}
	return math.Floor(d.requests.capacity * reserved)
}

// enter adds a caller to those who wait.
func (d *desk) enter(c *caller) {
	a := d.account(c.cmd.Principal)
	c.account = a
	a.callers++
	if !c.cmd.DryRun {
		a.ids += len(c.waiting)
	}
	k := c.kind()
	if d.lanes[k] == nil {
		d.lanes[k] = &lane{kind: k}
	}
	d.lanes[k].waiting = append(d.lanes[k].waiting, c)
}

func (d *desk) account(principal string) *account {
	a := d.accounts[principal]
	if a == nil {
		a = &account{principal: principal}
		d.accounts[principal] = a
	}
	return a
}

// leave removes what of a caller has not gone out.
func (d *desk) leave(c *caller) {
	l := d.lanes[c.kind()]
	if l == nil || len(c.waiting) == 0 {
		return
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(other *caller) bool { return other == c })
	d.took(c, len(c.waiting))
	c.waiting = nil
	d.tidy(l)
}

// took says that so many ids of a caller wait no longer.
func (d *desk) took(c *caller, n int) {
	if !c.cmd.DryRun {
		c.account.ids -= n
	}
	if n == len(c.waiting) {
		c.account.callers--
	}
}

// tidy drops what nobody needs any more.
func (d *desk) tidy(l *lane) {
	if len(l.waiting) == 0 && l.rounds == 0 {
		delete(d.lanes, l.kind)
	}
	idle := true
	for name, a := range d.accounts {
		if a.callers == 0 {
			a.credit = 0
			if a.calls <= d.clock {
				delete(d.accounts, name)
				continue
			}
		}
		idle = idle && a.callers == 0
	}
	if idle {
		clear(d.accounts)
		d.clock = 0
	}
}

// opens returns how long it takes until another batch of a lane may go out beside those
// on their way; negative when only the end of one of them helps.
func (l *lane) opens(now time.Time) time.Duration {
	switch {
	case l.rounds == 0:
		return 0
	case l.rounds >= mostRounds:
		return -1
	}
	return max(0, overtake-now.Sub(l.newest))
}

// candidate is a lane from which a batch could go out, and the account whose turn it is.
type candidate struct {
	*lane
	turn *account
	due  float64
	seq  uint64
}

// candidates returns the lanes that may send a batch, those first whose turn it is, and
// how long it takes until there may be others.
func (d *desk) candidates(now time.Time, free func(instance.ID) bool) (list []candidate, wait time.Duration) {
	wait = never
	for _, l := range d.lanes {
		if len(l.waiting) == 0 {
			continue
		}
		opens := l.opens(now)
		if opens == 0 {
			opens = d.requests.until(now, 1+d.reserve(l.kind))
		}
		switch {
		case opens < 0:
			continue
		case opens > 0:
			wait = min(wait, opens)
			continue
		}
		next := candidate{lane: l}
		for _, c := range l.waiting {
			if next.turn != nil && d.due(c.account) >= next.due || !c.mayGo(free) {
				continue
			}
			next.turn, next.due, next.seq = c.account, d.due(c.account), c.seq
		}
		if next.turn != nil {
			list = append(list, next)
		}
	}
	slices.SortFunc(list, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.due, y.due), cmp.Compare(x.seq, y.seq))
	})
	return list, wait
}

// never is longer than anybody waits.
const never = time.Duration(math.MaxInt64)

// mayGo reports whether any unit of the caller has only ids that no call is about.
func (c *caller) mayGo(free func(instance.ID) bool) bool {
	switch {
	case c.cmd.DryRun:
		return true
	case c.divisible():
		return slices.ContainsFunc(c.waiting, free)
	}
	return !slices.ContainsFunc(c.waiting, func(id instance.ID) bool { return !free(id) })
}
