package ec2

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxRemembered is how many recorded events are remembered: a message of one of them is
	// deleted when it comes again. As many messages are remembered that cannot be read.
	maxRemembered = 16_384
	// cleanUpTimeout bounds each call that deletes or renews messages.
	cleanUpTimeout = 5 * time.Second
)

// inbox holds received messages until their notices are recorded.
type inbox struct {
	b       *Backend
	closing chan struct{} // closed when no more messages are received
	wake    chan struct{} // holds one signal: there is something to delete

	mu sync.Mutex
	// waiting has the receipts of messages by event, while the event is not recorded.
	// EventBridge and SQS may each deliver an event twice.
	waiting map[string][]string
	// recorded are the events that were recorded recently.
	recorded *expiring.Cache[string, struct{}]
	// unreadable are the ids of messages that cannot be read, and were logged.
	unreadable *expiring.Cache[string, struct{}]
	// done are receipts of messages to delete.
	done []string
}

func newInbox(b *Backend) *inbox {
	return &inbox{
		b:          b,
		closing:    make(chan struct{}),
		wake:       make(chan struct{}, 1),
		waiting:    make(map[string][]string),
		recorded:   expiring.New[string, struct{}](0, maxRemembered),
		unreadable: expiring.New[string, struct{}](0, maxRemembered),
	}
}

// accept returns the notice in a message. news is false if the event was received before.
func (box *inbox) accept(m types.Message) (notice instance.Notice, news bool) {
	receipt := aws.ToString(m.ReceiptHandle)
	event, notice, err := readMessage(m)
	received := &box.b.metrics.queue.received
	box.mu.Lock()
	defer box.mu.Unlock()
	if err != nil {
		received[receivedUnreadable].Inc()
		box.reportUnreadableLocked(aws.ToString(m.MessageId), err)
		return instance.Notice{}, false
	}
	if box.recorded.Has(event) {
		received[receivedAgain].Inc()
		box.deleteLocked(receipt)
		return instance.Notice{}, false
	}
	receipts, again := box.waiting[event]
	box.waiting[event] = append(receipts, receipt)
	notice.Ack = func() { box.acknowledge(event) }
	if again {
		received[receivedAgain].Inc()
		return notice, false
	}
	received[receivedNew].Inc()
	box.b.metrics.queue.age.Observe(max(0, time.Since(notice.OccurredAt).Seconds()))
	return notice, true
}

// reportUnreadableLocked logs once that a message cannot be read: without a dead-letter queue it
// is delivered again and again.
func (box *inbox) reportUnreadableLocked(message string, err error) {
	if box.unreadable.Has(message) {
		return
	}
	box.unreadable.Set(message, struct{}{})
	box.b.log.Warn("a message in the queue cannot be read and is left for the dead-letter queue", "message_id", message, "error", err)
}

// size returns how many events are not recorded yet; none without an inbox.
func (box *inbox) size() int {
	if box == nil {
		return 0
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	return len(box.waiting)
}

// acknowledge deletes the messages of an event, once.
func (box *inbox) acknowledge(event string) {
	box.mu.Lock()
	defer box.mu.Unlock()
	receipts, waiting := box.waiting[event]
	if !waiting {
		return
	}
	delete(box.waiting, event)
	box.recorded.Set(event, struct{}{})
	box.deleteLocked(receipts...)
}

// deleteLocked queues messages to be deleted.
func (box *inbox) deleteLocked(receipts ...string) {
	box.done = append(box.done, receipts...)
	select {
	case box.wake <- struct{}{}:
	default:
	}
}

// maintain deletes messages whose events are recorded, and keeps the others hidden from other
// consumers, until the inbox closes.
func (box *inbox) maintain() {
	renew := time.NewTicker(visibilityTimeout / 3)
	defer renew.Stop()
	for {
		select {
		case <-box.wake:
			box.delete()
		case <-renew.C:
			box.renew()
		case <-box.closing:
			box.delete()
			return
		}
	}
}

// delete deletes the queued messages. If that fails, they are delivered again and recognised.
func (box *inbox) delete() {
	box.mu.Lock()
	receipts := box.done
	box.done = nil
	box.mu.Unlock()
	box.batches(receipts, func(ctx context.Context, part []string) error {
		entries := make([]types.DeleteMessageBatchRequestEntry, len(part))
		for i := range part {
			entries[i] = types.DeleteMessageBatchRequestEntry{Id: new(strconv.Itoa(i)), ReceiptHandle: &part[i]}
		}
		out, err := box.b.queue.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &box.b.cfg.QueueURL, Entries: entries})
		if box.b.metrics.queue.countCall(actionDelete, err); err == nil {
			box.b.metrics.queue.deleted.Add(float64(len(out.Successful)))
		}
		return err
	})
}

// renew extends the visibility timeout of messages whose events are not recorded yet.
func (box *inbox) renew() {
	box.mu.Lock()
	var receipts []string
	for _, list := range box.waiting {
		receipts = append(receipts, list...)
	}
	box.mu.Unlock()
	box.batches(receipts, func(ctx context.Context, part []string) error {
		entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(part))
		for i := range part {
			entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{
				Id: new(strconv.Itoa(i)), ReceiptHandle: &part[i], VisibilityTimeout: int32(visibilityTimeout / time.Second),
			}
		}
		_, err := box.b.queue.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &box.b.cfg.QueueURL, Entries: entries})
		box.b.metrics.queue.countCall(actionRenew, err)
		return err
	})
}

// batches makes a call for each ten receipts.
func (box *inbox) batches(receipts []string, call func(context.Context, []string) error) {
	for part := range slices.Chunk(receipts, maxMessages) {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
		err := call(ctx, part)
		cancel()
		if err != nil {
			box.b.log.Warn("messages in the queue could not be deleted, or kept for longer; they will come again", "count", len(part), "error", err)
			return
		}
	}
}
