package ec2

import (
	"context"
	"crypto/md5" //nolint:gosec // SQS's checksum
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// longPoll is how long SQS waits for a message.
	longPoll = 20 * time.Second
	// visibilityTimeout is how long SQS hides a received message from other consumers. It is
	// renewed until the message is acknowledged.
	visibilityTimeout = time.Minute
	// maxMessages is how many messages one SQS call may cover.
	maxMessages = 10
	// maxBackoff bounds the pause after a failed call to SQS.
	maxBackoff = 30 * time.Second
)

func newQueue(cfg Config, expiry *instant) *sqs.Client {
	return sqs.NewFromConfig(cfg.AWS, func(o *sqs.Options) {
		o.Retryer = aws.NopRetryer{}
		// The SDK would reject all messages of a response if one is damaged.
		o.DisableMessageChecksumValidation = true
		if o.Credentials != nil {
			o.Credentials = markedCredentials{o.Credentials, expiry}
		}
	})
}

// Notices yields the state changes that EventBridge sends to the queue, until ctx is done; the
// contract is documented at the consumer. A message is deleted once its notice is acknowledged.
// One that cannot be read is left for the queue's redrive policy to move to the dead-letter
// queue. Without a queue there are no notices.
func (b *Backend) Notices(ctx context.Context) iter.Seq2[instance.Notice, error] {
	return func(yield func(instance.Notice, error) bool) {
		if b.queue == nil {
			<-ctx.Done()
			return
		}
		box := newInbox(b)
		b.inbox.Store(box)
		defer b.inbox.CompareAndSwap(box, nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			box.maintain()
		}()
		defer func() {
			close(box.closing)
			<-ended
		}()
		backoff := minBackoff
		for ctx.Err() == nil {
			messages, err := box.receive(ctx)
			if err != nil {
				if ctx.Err() != nil || !yield(instance.Notice{}, err) || !pause(ctx, jitter(backoff)) {
					return
				}
				backoff = min(2*backoff, maxBackoff)
				continue
			}
			backoff = minBackoff
			for _, m := range messages {
				notice, news := box.accept(m)
				if news && !yield(notice, nil) {
					return
				}
			}
		}
	}
}

// receive waits for messages.
func (box *inbox) receive(ctx context.Context) ([]types.Message, error) {
	receiving, cancel := context.WithTimeout(ctx, longPoll+10*time.Second)
	defer cancel()
	out, err := box.b.queue.ReceiveMessage(receiving, &sqs.ReceiveMessageInput{
		QueueUrl:            &box.b.cfg.QueueURL,
		MaxNumberOfMessages: maxMessages,
		WaitTimeSeconds:     int32(longPoll / time.Second),
		VisibilityTimeout:   int32(visibilityTimeout / time.Second),
	})
	if ctx.Err() == nil {
		box.b.metrics.queue.countCall(actionReceive, err)
	}
	if err != nil {
		if failureOf(err, nil).credentials {
			box.b.log.Error("the queue cannot be read: this service's own credentials are missing or refused", "error", err)
		}
		return nil, fmt.Errorf("receiving state changes from the queue: %w", err)
	}
	box.b.lastReceive.set(time.Now())
	return out.Messages, nil
}

// envelope is a state change as EventBridge sends it. Source: EC2 User Guide, "State
// change events for your instances".
type envelope struct {
	ID         string    `json:"id"`
	DetailType string    `json:"detail-type"`
	Source     string    `json:"source"`
	Time       time.Time `json:"time"`
	Detail     struct {
		InstanceID string `json:"instance-id"`
		State      string `json:"state"`
	} `json:"detail"`
}

// readMessage parses a message of EventBridge.
func readMessage(m types.Message) (eventID string, n instance.Notice, err error) {
	body := []byte(aws.ToString(m.Body))
	if sum := md5.Sum(body); m.MD5OfBody != nil && *m.MD5OfBody != hex.EncodeToString(sum[:]) { //nolint:gosec // SQS's checksum
		return "", n, errors.New("damaged: its checksum is another one")
	}
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		return "", n, fmt.Errorf("not JSON as EventBridge sends it: %w", err)
	}
	if e.Source != "aws.ec2" || e.DetailType != "EC2 Instance State-change Notification" {
		return "", n, fmt.Errorf("of type %.60q from %.60q, not a change of an instance's state", e.DetailType, e.Source)
	}
	id, err := instance.ParseID(e.Detail.InstanceID)
	switch {
	case err != nil:
		return "", n, err
	case e.ID == "" || e.Time.IsZero():
		return "", n, fmt.Errorf("without id or time")
	}
	for _, state := range instance.States() {
		if state.String() == e.Detail.State {
			return e.ID, instance.Notice{ID: id, State: state, OccurredAt: e.Time.UTC(), Source: instance.SourceEventBridge}, nil
		}
	}
	return "", n, fmt.Errorf("with the unknown state %.40q", e.Detail.State)
}
