package lifecycle

import (
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// past remembers for a while what instances were before they changed, to tell an
// outdated description from a change back.
type past struct {
	keep time.Duration

	mu    sync.Mutex
	lives map[instance.ID][]*instance.Instance
	// queue has what is in lives, oldest first.
	queue []passed
}

type passed struct {
	image *instance.Instance
	until time.Time
}

func newPast(keep time.Duration) *past {
	return &past{keep: keep, lives: make(map[instance.ID][]*instance.Instance)}
}

// note remembers what an instance was, nil for nothing.
func (p *past) note(image *instance.Instance) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && now.After(p.queue[0].until) {
		id := p.queue[0].image.ID
		p.queue[0] = passed{}
		p.queue = p.queue[1:]
		if p.lives[id] = p.lives[id][1:]; len(p.lives[id]) == 0 {
			delete(p.lives, id)
		}
	}
	if image == nil {
		return
	}
	p.queue = append(p.queue, passed{image: image, until: now.Add(p.keep)})
	p.lives[image.ID] = append(p.lives[image.ID], image)
}

// has reports whether the instance was lately as the image shows it.
func (p *past) has(image *instance.Instance) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, was := range p.lives[image.ID] {
		if sameLife(was, image) {
			return true
		}
	}
	return false
}
