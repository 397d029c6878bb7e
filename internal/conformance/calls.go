package conformance

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Acknowledged is a command with a response.
type Acknowledged struct {
	At time.Time
	// Cursor and EndCursor come from the response.
	Cursor, EndCursor string
}

// Live checks that a change acknowledged after the subscription was established is
// delivered, unless it precedes the cursor at which the subscription began. The connection
// must have passed the last response.
func Live(log *Log, c *Connection, answers ...Acknowledged) error {
	if len(c.Messages) == 0 {
		return errors.New("live: the stream is empty")
	}
	begin, err := beginning(log, c)
	if err != nil {
		return fmt.Errorf("live: %w", err)
	}
	delivered := map[[2]uint64]bool{}
	for _, e := range c.Events() {
		delivered[[2]uint64{e.GetRevision(), uint64(e.GetIndex())}] = true
	}
	for _, a := range answers {
		if a.At.Before(c.Messages[0].At) {
			continue
		}
		after, err := log.Revision(a.Cursor)
		if err != nil {
			return fmt.Errorf("live: %w", err)
		}
		upTo, err := log.Revision(a.EndCursor)
		if err != nil {
			return fmt.Errorf("live: %w", err)
		}
		for _, e := range log.Matching(c.Request.GetFilter(), max(after, begin), upTo) {
			if !delivered[[2]uint64{e.GetRevision(), uint64(e.GetIndex())}] {
				return fmt.Errorf("live: %s was acknowledged after the subscription stood and is not delivered", name(e))
			}
		}
	}
	return nil
}

// beginning returns the revision at which a connection began to deliver.
func beginning(log *Log, c *Connection) (uint64, error) {
	for _, m := range c.Messages {
		if m.GetCursor() != "" {
			return log.Revision(m.GetCursor())
		}
	}
	return 0, errors.New("there is no cursor")
}

// Progress checks that each stream has at least one message in each interval, up to now or
// to the end of the stream. Slack allows for delays of the recording process.
func Progress(c *Connection, now time.Time, slack time.Duration) error {
	if len(c.Messages) == 0 {
		return errors.New("progress: the stream is empty")
	}
	if c.Err != nil {
		now = c.Ended
	}
	streams := c.Streams()
	for i, messages := range streams {
		end := messages[len(messages)-1].At
		if i == len(streams)-1 {
			end = now
		}
		if err := progress(messages, end, slack); err != nil {
			return err
		}
	}
	return nil
}

func progress(messages []Message, end time.Time, slack time.Duration) error {
	interval := messages[0].GetSubscribed().GetProgressInterval().AsDuration()
	last := messages[0].At
	late := func(at time.Time) error {
		if gap := at.Sub(last); gap > interval+slack {
			return fmt.Errorf("progress: none for %v, although one was to come every %v", gap, interval)
		}
		return nil
	}
	for _, m := range messages {
		if m.GetProgress() == nil {
			continue
		}
		if m.GetCursor() == "" {
			return errors.New("progress: a message has no cursor")
		}
		if err := late(m.At); err != nil {
			return err
		}
		last = m.At
	}
	return late(end)
}

// ReadYourStart checks that a stream after the cursor of a start sees every change that
// it caused.
func ReadYourStart(c *Connection, start *instancedv1.StartInstancesResponse, requestID string) error {
	if c.Request.GetAfterCursor() != start.GetCursor() {
		return errors.New("read your start: the stream began at another cursor")
	}
	for _, change := range start.GetStartingInstances() {
		if change.GetPreviousState().GetName() == change.GetCurrentState().GetName() {
			continue
		}
		found := false
		for _, e := range c.Events() {
			found = found || e.GetInstance().GetInstanceId() == change.GetInstanceId() &&
				e.GetPreviousState().GetName() == change.GetPreviousState().GetName() &&
				e.GetInstance().GetState().GetName() == change.GetCurrentState().GetName() &&
				e.GetCause().GetRequestId() == requestID
		}
		if !found {
			return fmt.Errorf("read your start: that %s went from %v to %v is not seen", change.GetInstanceId(),
				change.GetPreviousState().GetName(), change.GetCurrentState().GetName())
		}
	}
	return nil
}

// Refused checks that an error has a code, a reason and the request id.
func Refused(err error, code codes.Code, reason string) error {
	s := status.Convert(err)
	if s.Code() != code {
		return fmt.Errorf("refused: the code is %v, want %v: %s", s.Code(), code, s.Message())
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			switch {
			case info.GetReason() != reason:
				return fmt.Errorf("refused: the reason is %s, want %s: %s", info.GetReason(), reason, s.Message())
			case info.GetMetadata()["request_id"] == "":
				return errors.New("refused: the error has no request id")
			}
			return nil
		}
	}
	return fmt.Errorf("refused: the error has no ErrorInfo: %w", err)
}

// Goodbye checks that a stream that the server ended has a goodbye as its last message,
// with a cursor and a delay, and ended with UNAVAILABLE and the same delay.
func Goodbye(c *Connection, reason instancedv1.GoodbyeReason) error {
	if len(c.Messages) == 0 {
		return errors.New("goodbye: the stream is empty")
	}
	last := c.Messages[len(c.Messages)-1]
	bye := last.GetGoodbye()
	switch {
	case bye == nil:
		return fmt.Errorf("goodbye: the last message is %v", last.WatchInstancesResponse)
	case bye.GetReason() != reason:
		return fmt.Errorf("goodbye: the reason is %v, want %v", bye.GetReason(), reason)
	case bye.GetRetryDelay().AsDuration() <= 0:
		return errors.New("goodbye: there is no retry delay")
	case last.GetCursor() == "" && c.Cursor() != "":
		return errors.New("goodbye: there is no cursor")
	}
	s := status.Convert(c.Err)
	if s.Code() != codes.Unavailable {
		return fmt.Errorf("goodbye: the stream ended with %w", c.Err)
	}
	for _, d := range s.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() == bye.GetRetryDelay().AsDuration() {
			return nil
		}
	}
	return fmt.Errorf("goodbye: the status has not the retry delay of the message: %v", s.Details())
}

// Durable checks that the history before a crash is the beginning of the history after it.
// Both are of the same instances.
func Durable(before, after []*instancedv1.Event) error {
	return same("durable: the history after the crash", after[:min(len(after), len(before))], before)
}

// Truthful checks that the history ends in the states that the backend itself reports.
func Truthful(log *Log, backend map[string]instancedv1.InstanceStateName) error {
	fold := log.At(log.Head())
	if len(backend) != len(fold) {
		return fmt.Errorf("truthful: the backend has %d instances and %d are recorded", len(backend), len(fold))
	}
	for id, state := range backend {
		if known := fold[id].GetState().GetName(); known != state {
			return fmt.Errorf("truthful: %s is %v and recorded as %v", id, state, known)
		}
	}
	return nil
}
