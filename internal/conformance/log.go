package conformance

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Log is everything that was recorded after some position, with which subscribers are
// compared. It is safe for concurrent use.
type Log struct {
	// begin is the cursor at which the log begins, base the instances at that position, and
	// end the cursor after the last batch.
	begin, end string
	base       map[string]*instancedv1.Instance
	batches    []batch
	// revisions maps the cursor after each batch to its revision; the beginning is at 0.
	revisions map[string]uint64

	mu sync.Mutex
	// matching has, for each filter used so far, everything that a subscriber must receive.
	matching map[string][]*instancedv1.Event
	// fold is the last one requested: the next request is often for a later one.
	fold fold
}

// batch is what was recorded together.
type batch struct {
	revision uint64
	events   []*instancedv1.Event
}

// NewLog returns the log of an unfiltered subscription that began with a snapshot, and of
// its resumed connections.
func NewLog(reference ...*Connection) (*Log, error) {
	l := &Log{
		base:      map[string]*instancedv1.Instance{},
		revisions: map[string]uint64{},
		matching:  map[string][]*instancedv1.Event{},
	}
	for i, c := range reference {
		if err := l.add(c); err != nil {
			return nil, fmt.Errorf("connection %d of the reference: %w", i, err)
		}
	}
	if l.begin == "" {
		return nil, errors.New("the reference has no snapshot to begin with")
	}
	return l, nil
}

func (l *Log) add(c *Connection) error {
	if c.Request.GetFilter() != nil {
		return errors.New("it has a filter")
	}
	if after := c.Request.GetAfterCursor(); l.begin != "" && after != l.end {
		return errors.New("it did not go on where the one before ended")
	}
	var open batch
	for _, m := range c.Messages {
		if s := m.GetSnapshot(); s != nil {
			if l.begin != "" {
				return fmt.Errorf("it begins again with a snapshot: %v", s.GetReason())
			}
			if s.GetFirst() {
				clear(l.base)
			}
			for _, i := range s.GetInstances() {
				l.base[i.GetInstanceId()] = i
			}
			if s.GetLast() {
				l.begin, l.end = m.GetCursor(), m.GetCursor()
				l.revisions[l.begin] = 0
			}
		}
		for _, e := range m.GetEvents().GetEvents() {
			if open.revision != 0 && open.revision != e.GetRevision() {
				return fmt.Errorf("revision %d begins before %d has ended with a cursor", e.GetRevision(), open.revision)
			}
			if e.GetRevision() <= l.Head() {
				return fmt.Errorf("%s comes after a cursor of its revision or a later one", name(e))
			}
			open.revision = e.GetRevision()
			open.events = append(open.events, e)
		}
		// A resumed stream says where it begins, which is before a batch that the previous
		// stream left unfinished.
		if m.GetCursor() != "" && open.revision != 0 && m.GetSubscribed() == nil {
			l.end = m.GetCursor()
			l.revisions[l.end] = open.revision
			l.batches = append(l.batches, open)
			open = batch{}
		}
	}
	return nil
}

// Revision returns the revision before a cursor.
func (l *Log) Revision(cursor string) (uint64, error) {
	revision, ok := l.revisions[cursor]
	if !ok {
		return 0, fmt.Errorf("cursor %q is at the end of no recorded batch", cursor)
	}
	return revision, nil
}

// Begin returns the cursor at which the log begins.
func (l *Log) Begin() string { return l.begin }

// Head returns the revision of the last batch.
func (l *Log) Head() uint64 {
	if len(l.batches) == 0 {
		return 0
	}
	return l.batches[len(l.batches)-1].revision
}

// At returns the instances after a revision.
func (l *Log) At(revision uint64) map[string]*instancedv1.Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.fold
	if f.state == nil || f.revision > revision {
		*f = fold{state: maps.Clone(l.base)}
	}
	for ; f.batches < len(l.batches) && l.batches[f.batches].revision <= revision; f.batches++ {
		for _, e := range l.batches[f.batches].events {
			apply(f.state, e)
		}
		f.revision = l.batches[f.batches].revision
	}
	return maps.Clone(f.state)
}

// fold is the state of the instances after a number of batches.
type fold struct {
	revision uint64
	batches  int
	state    map[string]*instancedv1.Instance
}

func apply(state map[string]*instancedv1.Instance, e *instancedv1.Event) {
	id := e.GetInstance().GetInstanceId()
	if e.GetType() == instancedv1.EventType_EVENT_TYPE_REMOVED {
		delete(state, id)
		return
	}
	state[id] = e.GetInstance()
}

// Matching returns the events that a subscriber with a filter must receive of those
// recorded after one revision and up to another.
func (l *Log) Matching(filter *instancedv1.InstanceFilter, after, upTo uint64) []*instancedv1.Event {
	all := l.allMatching(filter)
	behind := func(revision uint64) int {
		return sort.Search(len(all), func(n int) bool { return all[n].GetRevision() > revision })
	}
	begin := behind(after)
	return slices.Clip(all[begin:max(begin, behind(upTo))])
}

// allMatching returns all events that a subscriber with a filter must receive. The result
// is cached, because tests request it at each cut of a stream.
func (l *Log) allMatching(filter *instancedv1.InstanceFilter) []*instancedv1.Event {
	key := filter.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if events, ok := l.matching[key]; ok {
		return events
	}
	state := maps.Clone(l.base)
	var events []*instancedv1.Event
	for _, b := range l.batches {
		for _, e := range b.events {
			was := matches(filter, state[e.GetInstance().GetInstanceId()])
			apply(state, e)
			is := matches(filter, state[e.GetInstance().GetInstanceId()])
			if !was && !is {
				continue
			}
			e = proto.CloneOf(e)
			switch {
			case was && is:
				e.Match = instancedv1.EventMatch_EVENT_MATCH_STAYED
			case is:
				e.Match = instancedv1.EventMatch_EVENT_MATCH_ENTERED
			default:
				e.Match = instancedv1.EventMatch_EVENT_MATCH_LEFT
			}
			events = append(events, e)
		}
	}
	l.matching[key] = events
	return events
}

// matches implements filters as the contract defines them.
func matches(f *instancedv1.InstanceFilter, i *instancedv1.Instance) bool {
	if i == nil {
		return false
	}
	for _, t := range f.GetTags() {
		value, ok := i.GetTags()[t.GetKey()]
		if !ok || !among(t.GetValues(), value) {
			return false
		}
	}
	return among(f.GetInstanceIds(), i.GetInstanceId()) &&
		among(f.GetStates(), i.GetState().GetName()) &&
		among(f.GetInstanceTypes(), i.GetInstanceType()) &&
		among(f.GetAvailabilityZones(), i.GetAvailabilityZone()) &&
		among(f.GetRegions(), i.GetRegion()) &&
		among(f.GetAccountIds(), i.GetAccountId())
}

func among[T comparable](wanted []T, have T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, have)
}

// Agrees compares the log with the history of all its instances after [Log.Begin], as
// returned by ListEvents.
func (l *Log) Agrees(history []*instancedv1.Event) error {
	return same("the history", history, l.Matching(nil, 0, l.Head()))
}
