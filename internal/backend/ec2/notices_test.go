package ec2

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// queue is an SQS endpoint with one standard queue: the actions that are used, in the JSON
// protocol, with visibility timeouts and a dead-letter queue.
type queue struct {
	mostReceives int // then a message goes to the dead-letter queue
	failing      bool
	attributes   map[string]string
	denied       string // an action that is not allowed
	hasty        bool   // it does not wait for messages

	mu       sync.Mutex
	messages []*message
	dead     []string
	receipts int
	deletes  int // calls
}

type message struct {
	body     string
	receipt  string
	visible  time.Time
	receives int
}

func (q *queue) send(body string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages = append(q.messages, &message{body: body})
}

// left returns how many messages are in the queue, and in the dead-letter queue.
func (q *queue) left() (alive, dead int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages), len(q.dead)
}

func (q *queue) Do(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	q.ServeHTTP(w, req)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (q *queue) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var in struct {
		QueueURL                             string
		WaitTimeSeconds, MaxNumberOfMessages int
		VisibilityTimeout                    int
		Entries                              []struct {
			ID, ReceiptHandle string
			VisibilityTimeout int
		}
	}
	body, _ := io.ReadAll(req.Body)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if err := json.Unmarshal(body, &in); err != nil || in.QueueURL != queueURL {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}`)
		return
	}
	type entry struct {
		ID   string `json:"Id"`
		Code string `json:",omitempty"`
	}
	_, action, _ := strings.Cut(req.Header.Get("X-Amz-Target"), ".")
	if action == q.denied {
		w.WriteHeader(403)
		_, _ = fmt.Fprintf(w, `{"__type":"com.amazon.coral.service#AccessDeniedException","message":"User: arn:aws:iam::123456789012:user/ana is not authorized to perform: sqs:%s"}`, action)
		return
	}
	switch action {
	case "GetQueueAttributes":
		_ = json.NewEncoder(w).Encode(map[string]any{"Attributes": q.attributes})
	case "ReceiveMessage":
		q.mu.Lock()
		failing := q.failing
		q.mu.Unlock()
		if failing {
			w.WriteHeader(500)
			return
		}
		type received struct {
			ID            string `json:"MessageId"`
			ReceiptHandle string
			Body          string
			MD5OfBody     string
		}
		var out struct{ Messages []received }
		until := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
		if q.hasty {
			until = time.Now()
		}
		for {
			for _, m := range q.take(in.MaxNumberOfMessages, time.Duration(in.VisibilityTimeout)*time.Second) {
				sum := md5.Sum([]byte(m.body))
				out.Messages = append(out.Messages, received{"m-1", m.receipt, m.body, hex.EncodeToString(sum[:])})
			}
			if len(out.Messages) > 0 || time.Now().After(until) || !pause(req.Context(), 100*time.Millisecond) {
				break
			}
		}
		_ = json.NewEncoder(w).Encode(out)
	case "DeleteMessageBatch", "ChangeMessageVisibilityBatch":
		out := struct{ Successful, Failed []entry }{[]entry{}, []entry{}}
		for _, e := range in.Entries {
			if _, err := strconv.Atoi(e.ReceiptHandle); err != nil {
				out.Failed = append(out.Failed, entry{e.ID, "ReceiptHandleIsInvalid"})
				continue
			}
			q.settle(e.ReceiptHandle, action == "DeleteMessageBatch", time.Duration(e.VisibilityTimeout)*time.Second)
			out.Successful = append(out.Successful, entry{ID: e.ID})
		}
		_ = json.NewEncoder(w).Encode(out)
	default:
		w.WriteHeader(400)
	}
}

func (q *queue) take(most int, hidden time.Duration) (taken []message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	kept := q.messages[:0]
	for _, m := range q.messages {
		if len(taken) < most && !m.visible.After(now) {
			if q.mostReceives > 0 && m.receives == q.mostReceives {
				q.dead = append(q.dead, m.body)
				continue
			}
			q.receipts++
			m.receives++
			m.receipt, m.visible = fmt.Sprint(q.receipts), now.Add(hidden)
			taken = append(taken, *m)
		}
		kept = append(kept, m)
	}
	q.messages = kept
	return taken
}

func (q *queue) settle(receipt string, remove bool, hidden time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if remove {
		q.deletes++
	}
	for i, m := range q.messages {
		switch {
		case m.receipt != receipt:
		case remove:
			q.messages = append(q.messages[:i], q.messages[i+1:]...)
			return
		default:
			m.visible = time.Now().Add(hidden)
		}
	}
}

const queueURL = "http://sqs.test/123456789012/changes"

// event is a state change as EventBridge sends it.
func event(n int, id instance.ID, state string) string {
	return fmt.Sprintf(`{"version":"0","id":"7bf73129-%d","detail-type":"EC2 Instance State-change Notification","source":"aws.ec2",
		"account":"123456789012","time":"2021-11-11T21:29:54Z","region":"us-east-1","resources":["arn:aws:ec2:us-east-1:123456789012:instance/%[2]s"],
		"detail":{"instance-id":%[2]q,"state":%[3]q}}`, n, id, state)
}

// heard collects what a backend hears from a queue, until the test ends.
type heard struct {
	mu      sync.Mutex
	notices []instance.Notice
	errs    []error
	stop    func()
}

func listen(t *testing.T, q *queue) *heard {
	b := connect(t, nil, func(c *Config) {
		c.AWS.HTTPClient, c.QueueURL, c.Logger = q, queueURL, slog.New(slog.DiscardHandler)
	})
	ctx, cancel := context.WithCancel(t.Context())
	h := &heard{}
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

func TestNotices(t *testing.T) {
	bubble(t, "a message is a notice, and is deleted once it is acknowledged", func(t *testing.T) {
		q := &queue{}
		h := listen(t, q)
		q.send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		n := notices[0]
		if n.ID != id(1) || n.State != instance.StateStopped || n.Source != instance.SourceEventBridge ||
			!n.OccurredAt.Equal(time.Date(2021, 11, 11, 21, 29, 54, 0, time.UTC)) || n.Instance != nil {
			t.Errorf("notice is %+v", n)
		}
		if alive, _ := q.left(); alive != 1 {
			t.Error("it was deleted before it was acknowledged")
		}
		n.Ack()
		n.Ack()
		h.after(time.Second)
		if alive, _ := q.left(); alive != 0 {
			t.Error("it was not deleted")
		}
	})
	bubble(t, "one that is not acknowledged stays hidden from others, and comes again to the next", func(t *testing.T) {
		q := &queue{}
		first := listen(t, q)
		q.send(event(1, id(1), "stopped"))
		if n := len(first.after(10 * time.Minute)); n != 1 {
			t.Errorf("%d notices in ten minutes", n)
		}
		first.stop()
		second := listen(t, q)
		if n := len(second.after(2 * visibility)); n != 1 {
			t.Errorf("the next got %d notices", n)
		}
	})
	bubble(t, "an event that comes twice is told once, and both messages are deleted", func(t *testing.T) {
		q := &queue{}
		h := listen(t, q)
		q.send(event(1, id(1), "stopped"))
		q.send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		notices[0].Ack()
		q.send(event(1, id(1), "stopped"))
		if n := len(h.after(time.Second)); n != 1 {
			t.Errorf("%d notices in the end", n)
		}
		if alive, _ := q.left(); alive != 0 {
			t.Errorf("%d messages are left", alive)
		}
	})
	bubble(t, "what cannot be read goes to the dead-letter queue, and holds nothing up", func(t *testing.T) {
		q := &queue{mostReceives: 3}
		h := listen(t, q)
		bad := []string{"hello", "{}", event(2, "i-1", "stopped"), event(3, id(1), "sleeping"), strings.ReplaceAll(event(4, id(1), "stopped"), "aws.ec2", "aws.s3")}
		for _, body := range bad {
			q.send(body)
		}
		q.send(event(1, id(1), "stopped"))
		notices := h.after(time.Second)
		if len(notices) != 1 {
			t.Fatalf("%d notices", len(notices))
		}
		notices[0].Ack()
		h.after(5 * visibility)
		if alive, dead := q.left(); alive != 0 || dead != len(bad) {
			t.Errorf("%d messages are left, %d are dead letters", alive, dead)
		}
	})
	bubble(t, "a queue that cannot be asked is an error, and is asked again", func(t *testing.T) {
		q := &queue{failing: true}
		h := listen(t, q)
		h.after(time.Minute)
		if n := len(h.errs); n < 3 || n > 20 {
			t.Errorf("%d errors in a minute", n)
		}
		q.mu.Lock()
		q.failing = false
		q.mu.Unlock()
		q.send(event(1, id(1), "stopped"))
		if n := len(h.after(time.Minute)); n != 1 {
			t.Errorf("%d notices afterwards", n)
		}
	})
	bubble(t, "many are deleted by ten", func(t *testing.T) {
		q := &queue{}
		h := listen(t, q)
		for n := range 100 {
			q.send(event(n, id(n), "running"))
		}
		notices := h.after(time.Second)
		if len(notices) != 100 {
			t.Fatalf("%d notices", len(notices))
		}
		for _, n := range notices {
			n.Ack()
		}
		h.after(time.Second)
		if alive, _ := q.left(); alive != 0 {
			t.Errorf("%d messages are left", alive)
		}
	})
}
