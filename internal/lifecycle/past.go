package lifecycle

import (
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxPast is how many changes are remembered, whatever happens within the time that they are
// to be: about 2 MiB of memory, and more than EC2 lets anybody cause in a minute.
const maxPast = 1 << 14

// past remembers for a while what instances were before they changed, to tell an
// outdated description from a change back.
type past struct {
	keep time.Duration

	mu sync.Mutex
	// lives has the oldest of each instance first.
	lives map[instance.ID][]life
	// queue has what is in lives, oldest first.
	queue []passed
}

// passed is the oldest of the lives of an instance that are remembered.
type passed struct {
	id    instance.ID
	until time.Time
}

func newPast(keep time.Duration) *past {
	return &past{keep: keep, lives: make(map[instance.ID][]life)}
}

// note remembers what an instance was, nil for nothing.
func (p *past) note(image *instance.Instance) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && (now.After(p.queue[0].until) || len(p.queue) >= maxPast) {
		id := p.queue[0].id
		p.queue[0] = passed{}
		p.queue = p.queue[1:]
		if p.lives[id] = p.lives[id][1:]; len(p.lives[id]) == 0 {
			delete(p.lives, id)
		}
	}
	if image == nil {
		return
	}
	p.queue = append(p.queue, passed{id: image.ID, until: now.Add(p.keep)})
	p.lives[image.ID] = append(p.lives[image.ID], lifeOf(image))
}

// has reports whether the instance was lately as the image shows it.
func (p *past) has(image *instance.Instance) bool {
	is := lifeOf(image)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, was := range p.lives[image.ID] {
		if was.same(is) {
			return true
		}
	}
	return false
}
