// Package sqstest is a fake SQS for tests: one standard queue with a dead-letter queue and
// the actions that the service uses, in the JSON protocol, and state changes as EventBridge
// sends them.
package sqstest

import (
	"context"
	"crypto/md5" //nolint:gosec // SQS sends it, and the SDK compares
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

// URL is the URL of the queue, independent of the endpoint.
const URL = "http://sqs.test/123456789012/changes"

// Queue is the queue. It is an HTTP handler, and an HTTP client of the SDK that needs no
// network. The zero value is an empty queue without a dead-letter queue.
type Queue struct {
	// MaxReceives is how often a message is received before it is moved to the dead-letter
	// queue; 0 for no limit.
	MaxReceives int
	// Attributes are the result of GetQueueAttributes.
	Attributes map[string]string
	// Denied is an action that is denied to everyone.
	Denied string
	// Damage changes a message body in transit; nil for no change.
	Damage func(body string) string
	// Hasty is whether it does not wait for messages.
	Hasty bool

	mu       sync.Mutex
	messages []*message
	dead     []string
	sent     int
	receipts int
	waiting  int
	failing  map[string]bool // by action
	news     chan struct{}   // closed when there may be something to receive
}

type message struct {
	id       int
	body     string
	receipt  string
	visible  time.Time
	receives int
}

// Send puts a message into the queue.
func (q *Queue) Send(body string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent++
	q.messages = append(q.messages, &message{id: q.sent, body: body})
	q.wakeLocked()
}

// Event is a change of an instance's state as EventBridge sends it.
func Event(id, instanceID, state string, at time.Time) string {
	return fmt.Sprintf(`{"version":"0","id":%q,"detail-type":"EC2 Instance State-change Notification","source":"aws.ec2",`+
		`"account":"123456789012","time":%q,"region":"us-east-1","resources":["arn:aws:ec2:us-east-1:123456789012:instance/%[3]s"],`+
		`"detail":{"instance-id":%[3]q,"state":%[4]q}}`, id, at.UTC().Format(time.RFC3339), instanceID, state)
}

// Left returns the number of messages in the queue, received or not, and in the dead-letter
// queue.
func (q *Queue) Left() (alive, dead int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages), len(q.dead)
}

// Received returns how many of the messages that are left were received at least n times.
func (q *Queue) Received(times int) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		if m.receives >= times {
			n++
		}
	}
	return n
}

// Visible returns how many messages can be received now.
func (q *Queue) Visible() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		if !m.visible.After(time.Now()) {
			n++
		}
	}
	return n
}

// Waiting returns how many calls wait for messages.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

func (q *Queue) wait(more int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting += more
}

// Expire ends the visibility timeout of all messages, as if it had passed.
func (q *Queue) Expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		m.visible = time.Time{}
	}
	q.wakeLocked()
}

// Fail lets these actions fail with status 500, and no others.
func (q *Queue) Fail(actions ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failing = make(map[string]bool)
	for _, action := range actions {
		q.failing[action] = true
	}
}

// Purge removes all messages.
func (q *Queue) Purge() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages = nil
}

// wakeLocked wakes the calls that wait for messages. The caller holds the lock.
func (q *Queue) wakeLocked() {
	if q.news != nil {
		close(q.news)
		q.news = nil
	}
}

// Do makes the queue an HTTP client of the SDK.
func (q *Queue) Do(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	q.ServeHTTP(w, req)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

type request struct {
	QueueURL                             string
	WaitTimeSeconds, MaxNumberOfMessages int
	VisibilityTimeout                    int
	Entries                              []requestEntry
}

type requestEntry struct {
	ID, ReceiptHandle string
	VisibilityTimeout int
}

type received struct {
	ID            string `json:"MessageId"`
	ReceiptHandle string
	Body          string
	MD5OfBody     string
}

type settled struct {
	ID   string `json:"Id"`
	Code string `json:",omitempty"`
}

// ServeHTTP makes the queue a server.
func (q *Queue) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var in request
	body, _ := io.ReadAll(req.Body)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if err := json.Unmarshal(body, &in); err != nil || in.QueueURL != URL {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}`)
		return
	}
	_, action, _ := strings.Cut(req.Header.Get("X-Amz-Target"), ".")
	switch {
	case action == q.Denied:
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]string{
			"__type":  "com.amazon.coral.service#AccessDeniedException",
			"message": "User: arn:aws:iam::123456789012:user/ana is not authorized to perform: sqs:" + action,
		})
		return
	case q.fails(action):
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	switch action {
	case "GetQueueAttributes":
		_ = json.NewEncoder(w).Encode(map[string]any{"Attributes": q.Attributes})
	case "ReceiveMessage":
		var out struct{ Messages []received }
		for _, m := range q.receive(req.Context(), in) {
			sum := md5.Sum([]byte(m.body)) //nolint:gosec // as SQS does
			body := m.body
			if q.Damage != nil {
				body = q.Damage(body)
			}
			out.Messages = append(out.Messages, received{fmt.Sprintf("m-%d", m.id), m.receipt, body, hex.EncodeToString(sum[:])})
		}
		_ = json.NewEncoder(w).Encode(out)
	case "DeleteMessageBatch", "ChangeMessageVisibilityBatch":
		out := struct{ Successful, Failed []settled }{[]settled{}, []settled{}}
		for _, e := range in.Entries {
			if _, err := strconv.Atoi(e.ReceiptHandle); err != nil {
				out.Failed = append(out.Failed, settled{e.ID, "ReceiptHandleIsInvalid"})
				continue
			}
			q.settle(e.ReceiptHandle, action == "DeleteMessageBatch", time.Duration(e.VisibilityTimeout)*time.Second)
			out.Successful = append(out.Successful, settled{ID: e.ID})
		}
		_ = json.NewEncoder(w).Encode(out)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (q *Queue) fails(action string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.failing[action]
}

// receive waits for messages for as long as it is asked to.
func (q *Queue) receive(ctx context.Context, in request) []message {
	q.wait(1)
	defer q.wait(-1)
	until := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		taken, next, news := q.take(in.MaxNumberOfMessages, time.Duration(in.VisibilityTimeout)*time.Second)
		wait := time.Until(until)
		if len(taken) > 0 || wait <= 0 || q.Hasty {
			return taken
		}
		if !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-news:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// take takes messages that are there; if there are none it tells when the next one may be,
// by time and by a channel.
func (q *Queue) take(maxMessages int, hidden time.Duration) (taken []message, next time.Time, news <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	kept := q.messages[:0]
	for _, m := range q.messages {
		switch {
		case m.visible.After(now):
			if next.IsZero() || m.visible.Before(next) {
				next = m.visible
			}
		case len(taken) == maxMessages:
		case q.MaxReceives > 0 && m.receives == q.MaxReceives:
			q.dead = append(q.dead, m.body)
			continue
		default:
			q.receipts++
			m.receives++
			m.receipt, m.visible = strconv.Itoa(q.receipts), now.Add(hidden)
			taken = append(taken, *m)
		}
		kept = append(kept, m)
	}
	q.messages = kept
	if q.news == nil {
		q.news = make(chan struct{})
	}
	return taken, next, q.news
}

// settle removes a message, or changes its visibility timeout.
func (q *Queue) settle(receipt string, remove bool, hidden time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
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
