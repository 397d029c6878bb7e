package ec2

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sqstest"
	"github.com/instanced/instanced/internal/instance"
)

// event is a state change as EventBridge sends it.
func event(n int, id instance.ID, state string) string {
	return sqstest.Event(fmt.Sprintf("7bf73129-%d", n), string(id), state, time.Date(2021, 11, 11, 21, 29, 54, 0, time.UTC))
}

// heard collects what a backend hears from a queue, until the test ends.
type heard struct {
	mu      sync.Mutex
	notices []instance.Notice
	errs    []error
	log     lockedBuffer
	stop    func()
}

func listen(t *testing.T, q *sqstest.Queue, adjust ...func(*Config)) *heard {
	h := &heard{}
	b := connect(t, nil, append(adjust, func(c *Config) {
		c.AWS.HTTPClient, c.QueueURL, c.Logger = q, sqstest.URL, slog.New(slog.NewTextHandler(&h.log, nil))
	})...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n, err := range b.Notices(ctx) {
			h.mu.Lock()
			if err != nil {
				h.errs = append(h.errs, err)
			} else {
				h.notices = append(h.notices, n)
			}
			h.mu.Unlock()
		}
	}()
	h.stop = func() { cancel(); <-done }
	t.Cleanup(h.stop)
	return h
}

func (h *heard) after(d time.Duration) []instance.Notice {
	time.Sleep(d)
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.notices
}

func TestNoticesComeFromTheQueue(t *testing.T) {
	inBubble(t, "a message is a notice, and is deleted once it is acknowledged", func(t *testing.T) {
		q := &sqstest.Queue{}
		h := listen(t, q)
		q.Send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		n := notices[0]
		if n.ID != id(1) || n.State != instance.StateStopped || n.Source != instance.SourceEventBridge ||
			!n.OccurredAt.Equal(time.Date(2021, 11, 11, 21, 29, 54, 0, time.UTC)) || n.Instance != nil {
			t.Errorf("notice is %+v", n)
		}
		if alive, _ := q.Left(); alive != 1 {
			t.Error("it was deleted before it was acknowledged")
		}
		n.Ack()
		n.Ack()
		h.after(time.Second)
		if alive, _ := q.Left(); alive != 0 {
			t.Error("it was not deleted")
		}
	})
	inBubble(t, "one that is not acknowledged stays hidden from others, and comes again to the next", func(t *testing.T) {
		q := &sqstest.Queue{}
		first := listen(t, q)
		q.Send(event(1, id(1), "stopped"))
		if n := len(first.after(10 * time.Minute)); n != 1 {
			t.Errorf("%d notices in ten minutes", n)
		}
		first.stop()
		second := listen(t, q)
		if n := len(second.after(2 * visibilityTimeout)); n != 1 {
			t.Errorf("the next got %d notices", n)
		}
	})
	inBubble(t, "an event that comes twice is told once, and both messages are deleted", func(t *testing.T) {
		q := &sqstest.Queue{}
		h := listen(t, q)
		q.Send(event(1, id(1), "stopped"))
		q.Send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		notices[0].Ack()
		q.Send(event(1, id(1), "stopped"))
		if n := len(h.after(time.Second)); n != 1 {
			t.Errorf("%d notices in the end", n)
		}
		if alive, _ := q.Left(); alive != 0 {
			t.Errorf("%d messages are left", alive)
		}
	})
	inBubble(t, "what cannot be read goes to the dead-letter queue, and holds nothing up", func(t *testing.T) {
		q := &sqstest.Queue{MaxReceives: 3}
		h := listen(t, q)
		bad := []string{"hello", "{}", event(2, "i-1", "stopped"), event(3, id(1), "sleeping"), strings.ReplaceAll(event(4, id(1), "stopped"), "aws.ec2", "aws.s3")}
		for _, body := range bad {
			q.Send(body)
		}
		q.Send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		notices[0].Ack()
		h.after(5 * visibilityTimeout)
		if alive, dead := q.Left(); alive != 0 || dead != len(bad) {
			t.Errorf("%d messages are left, %d are dead letters", alive, dead)
		}
	})
	inBubble(t, "one that is damaged on its way says nothing, and those that come with it do", func(t *testing.T) {
		q := &sqstest.Queue{Damage: func(body string) string { return strings.ReplaceAll(body, "running", "stopped") }}
		for n, state := range []string{"stopped", "running", "stopped"} {
			q.Send(event(n, id(n), state))
		}
		h := listen(t, q)
		notices := h.after(time.Second)
		if len(notices) != 2 || notices[0].ID != id(0) || notices[1].ID != id(2) {
			t.Errorf("notices are %+v", notices)
		}
		// It comes again for as long as nothing gives it up, and is named once.
		h.after(5 * visibilityTimeout)
		if n := strings.Count(h.log.String(), "cannot be read"); n != 1 {
			t.Errorf("it is named %d times:\n%s", n, &h.log)
		}
	})
	inBubble(t, "a queue that cannot be asked is an error, and is asked again", func(t *testing.T) {
		q := &sqstest.Queue{}
		q.Fail("ReceiveMessage")
		h := listen(t, q)
		h.after(time.Minute)
		if n := len(h.errs); n < 3 || n > 20 {
			t.Errorf("%d errors in a minute", n)
		}
		q.Fail()
		q.Send(event(1, id(1), "stopped"))
		if n := len(h.after(time.Minute)); n != 1 {
			t.Errorf("%d notices afterwards", n)
		}
	})
	inBubble(t, "many are deleted by ten", func(t *testing.T) {
		q := &sqstest.Queue{}
		h := listen(t, q)
		for n := range 100 {
			q.Send(event(n, id(n), "running"))
		}
		notices := h.after(time.Second)
		if len(notices) != 100 {
			t.Fatalf("%d notices", len(notices))
		}
		for _, n := range notices {
			n.Ack()
		}
		h.after(time.Second)
		if alive, _ := q.Left(); alive != 0 {
			t.Errorf("%d messages are left", alive)
		}
	})
}
