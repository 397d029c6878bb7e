package sim

import (
	"context"
	"iter"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// reorderedMost is the longest time that a reordered notice waits for the next one.
const reorderedMost = time.Minute

// Notices yields a notice of every change, including the changes of Execute, until ctx is
// done or the simulator is closed. There is one consumer: a second call replaces the first.
// Notices that were not acknowledged are yielded again to the next consumer. At most 16,384
// notices wait; beyond that the oldest are dropped, and only a reconciliation finds their
// changes.
func (b *Backend) Notices(ctx context.Context) iter.Seq2[instance.Notice, error] {
	return func(yield func(instance.Notice, error) bool) {
		mine := b.notices.attach()
		for ctx.Err() == nil {
			notice, ok, wait := b.notices.take(mine)
			if ok {
				if !yield(notice, nil) {
					return
				}
				continue
			}
			if !mine.sleep(ctx, wait) {
				return
			}
		}
	}
}

// publishLocked queues the notice of a change, as modified by faults.
func (b *Backend) publishLocked(m *machine, at time.Time) {
	m.heard++
	notice := instance.Notice{
		ID:         m.inst.ID,
		State:      m.inst.State,
		OccurredAt: at,
		Source:     instance.SourceSimulator,
		Instance:   m.inst,
	}
	if len(b.plan) == 0 {
		b.notices.push(notice)
		return
	}
	o := op{number: b.nextCallLocked(), now: time.Now()}
	if b.strikeNoticeLocked(o, NoticeLost, m) != nil {
		return
	}
	late := b.strikeNoticeLocked(o, NoticeLate, m)
	copies := 1
	if b.strikeNoticeLocked(o, NoticeDoubled, m) != nil {
		copies = 2
	}
	reordered := late == nil && b.strikeNoticeLocked(o, NoticeReordered, m) != nil
	for range copies {
		switch {
		case late != nil:
			b.notices.pushLate(notice, o.now.Add(late.Delay), false)
		case reordered:
			b.notices.pushLate(notice, o.now.Add(reorderedMost), true)
		default:
			b.notices.push(notice)
		}
	}
}
