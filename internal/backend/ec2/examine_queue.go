package ec2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

const (
	// shortPoll is how long SQS waits for a message.
	shortPoll = 2 * time.Second
	// shortHiding is how long a received message is hidden from other consumers. The SDK cannot
	// ask for zero.
	shortHiding = time.Second
	// minReceives is how often a message should be received before it goes to the dead-letter
	// queue: it may be delivered again when a process ends, or after an examination.
	minReceives = 3
	// eventBridge is the service that sends the state changes.
	eventBridge = "events.amazonaws.com"
)

// mailbox checks the queue that state changes come from.
func (x *examination) mailbox(ctx context.Context) []Finding {
	const check = "queue"
	if x.queue == nil {
		return []Finding{{
			check, LevelWarning, "there is none: changes that this service did not make are seen at the next full comparison only",
			"create a queue with its EventBridge rule, and name it by --sqs-queue-url",
		}}
	}
	ctx, cancel := context.WithTimeout(ctx, x.cfg.CallTimeout)
	defer cancel()
	out, err := x.queue.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &x.cfg.QueueURL, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll},
	})
	if err != nil {
		// The messages may be readable anyway.
		return append([]Finding{x.queueRefused(check, "sqs:GetQueueAttributes", err)}, x.messages(ctx)...)
	}
	attributes := out.Attributes
	findings := []Finding{
		{Check: check, Level: LevelOK, Text: fmt.Sprintf("%s holds %s messages", attributes["QueueArn"], attributes["ApproximateNumberOfMessages"])},
		queuePolicy(attributes["Policy"], attributes["QueueArn"]),
		deadLetters(attributes["RedrivePolicy"]),
	}
	if key := attributes["KmsMasterKeyId"]; key != "" {
		findings = append(findings, queueKey(key))
	}
	return append(findings, x.messages(ctx)...)
}

// oneOrMany is a JSON string, or a list of them.
type oneOrMany []string

// UnmarshalJSON accepts both forms.
func (l *oneOrMany) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		*l = oneOrMany{""}
		return json.Unmarshal(data, &(*l)[0])
	}
	return json.Unmarshal(data, (*[]string)(l))
}

// principals are the principals of a policy statement: services, or everybody.
type principals struct {
	everybody bool
	services  oneOrMany
}

// UnmarshalJSON accepts "*", and the lists by kind.
func (p *principals) UnmarshalJSON(data []byte) error {
	if string(data) == `"*"` {
		p.everybody = true
		return nil
	}
	var kinds map[string]oneOrMany
	if err := json.Unmarshal(data, &kinds); err != nil {
		return err
	}
	p.services, p.everybody = kinds["Service"], slices.Contains(kinds["AWS"], "*")
	return nil
}

// statement is one of a queue's policy, as far as it is looked at.
type statement struct {
	Effect    string
	Principal principals
	Action    oneOrMany
	Condition map[string]map[string]json.RawMessage
}

// sends reports whether a statement lets EventBridge send.
func (s *statement) sends() bool {
	known := s.Principal.everybody || slices.Contains(s.Principal.services, eventBridge)
	return s.Effect == "Allow" && known && slices.ContainsFunc(s.Action, func(a string) bool {
		a = strings.ToLower(a)
		return a == "sqs:sendmessage" || a == "sqs:*" || a == "*"
	})
}

// narrow reports whether a statement says on whose behalf.
func (s *statement) narrow() bool {
	for _, keys := range s.Condition {
		for key := range keys {
			if k := strings.ToLower(key); k == "aws:sourcearn" || k == "aws:sourceaccount" {
				return true
			}
		}
	}
	return false
}

// queuePolicy looks for EventBridge in the policy of the queue. Statements that deny are
// not weighed.
func queuePolicy(text, arn string) Finding {
	const check = "queue policy"
	var policy struct{ Statement []statement }
	if text != "" {
		if err := json.Unmarshal([]byte(text), &policy); err != nil {
			return Finding{check, LevelWarning, "it cannot be read: " + err.Error(), "see that it allows sqs:SendMessage to " + eventBridge}
		}
	}
	policy.Statement = slices.DeleteFunc(policy.Statement, func(s statement) bool { return !s.sends() })
	switch {
	case len(policy.Statement) == 0:
		return Finding{
			check, LevelProblem, "it does not let EventBridge send: state changes do not arrive",
			fmt.Sprintf("allow sqs:SendMessage on %s to the service %s, with the rule's ARN as aws:SourceArn", arn, eventBridge),
		}
	case slices.ContainsFunc(policy.Statement, func(s statement) bool { return !s.narrow() }):
		return Finding{
			check, LevelWarning, "anybody's rule may send to the queue",
			"add the condition ArnEquals aws:SourceArn with the rule's ARN",
		}
	}
	return Finding{Check: check, Level: LevelOK, Text: "EventBridge may send"}
}

// deadLetters looks for where messages go that cannot be read.
func deadLetters(text string) Finding {
	const check = "dead-letter queue"
	if text == "" {
		return Finding{
			check, LevelWarning, "there is none: a message that cannot be read comes again until it is too old",
			fmt.Sprintf("give the queue a redrive policy with a maxReceiveCount of %d or more", minReceives),
		}
	}
	var redrive struct {
		DeadLetterTargetArn string          `json:"deadLetterTargetArn"`
		MaxReceiveCount     json.RawMessage `json:"maxReceiveCount"` // a number, or one in quotes
	}
	err := json.Unmarshal([]byte(text), &redrive)
	receives, countErr := strconv.Atoi(strings.Trim(string(redrive.MaxReceiveCount), `"`))
	if err = errors.Join(err, countErr); err != nil {
		return Finding{check, LevelWarning, "the redrive policy cannot be read: " + err.Error(), "give the queue another one"}
	}
	if receives < minReceives {
		return Finding{
			check, LevelWarning, fmt.Sprintf("messages are given up after %d receives, and one comes again whenever this service is restarted before it is recorded", receives),
			fmt.Sprintf("set maxReceiveCount to %d or more", minReceives),
		}
	}
	return Finding{Check: check, Level: LevelOK, Text: fmt.Sprintf("%s, after %d receives", redrive.DeadLetterTargetArn, receives)}
}

// queueKey says what a key of KMS takes.
func queueKey(key string) Finding {
	const check = "queue key"
	if strings.HasSuffix(key, "alias/aws/sqs") {
		return Finding{
			check, LevelProblem, "EventBridge cannot use AWS's own key " + key,
			"encrypt the queue with SSE-SQS, or with a key of your own",
		}
	}
	return Finding{
		check, LevelWarning, "whether EventBridge may use the key " + key + " cannot be seen from here",
		"see that its policy allows kms:GenerateDataKey* and kms:Decrypt to " + eventBridge,
	}
}

// messages receives, and pretends to delete and to hide, as the service does.
func (x *examination) messages(ctx context.Context) []Finding {
	const unknownReceipt = "looked-at-by-the-doctor" // no message has this receipt
	asked := time.Now()
	received := Finding{Check: "ReceiveMessage", Level: LevelOK, Text: "long polling works"}
	out, err := x.queue.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &x.cfg.QueueURL, MaxNumberOfMessages: 1,
		WaitTimeSeconds: int32(shortPoll / time.Second), VisibilityTimeout: int32(shortHiding / time.Second),
	})
	switch waited := time.Since(asked); {
	case err != nil:
		received = x.queueRefused(received.Check, "sqs:ReceiveMessage", err)
	case len(out.Messages) == 0 && waited < shortPoll/2:
		received.Level, received.Text = LevelWarning, fmt.Sprintf("the queue was asked to wait %v for a message and answered without one after %v", shortPoll, waited.Round(time.Millisecond))
		received.Advice = "check the endpoint: polling will cost many calls"
	}
	findings := []Finding{received}
	pretend := func(check, action string, call func() ([]types.BatchResultErrorEntry, error)) {
		failed, err := call()
		if err == nil && len(failed) > 0 && isDenied(aws.ToString(failed[0].Code)) {
			err = &smithy.GenericAPIError{Code: aws.ToString(failed[0].Code), Message: aws.ToString(failed[0].Message)}
		}
		if err != nil {
			findings = append(findings, x.queueRefused(check, action, err))
			return
		}
		findings = append(findings, Finding{Check: check, Level: LevelOK, Text: "allowed"})
	}
	pretend("DeleteMessage", "sqs:DeleteMessage", func() ([]types.BatchResultErrorEntry, error) {
		out, err := x.queue.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{
			QueueUrl: &x.cfg.QueueURL,
			Entries:  []types.DeleteMessageBatchRequestEntry{{Id: new("0"), ReceiptHandle: new(unknownReceipt)}},
		})
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	})
	pretend("ChangeMessageVisibility", "sqs:ChangeMessageVisibility", func() ([]types.BatchResultErrorEntry, error) {
		out, err := x.queue.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{
			QueueUrl: &x.cfg.QueueURL,
			Entries:  []types.ChangeMessageVisibilityBatchRequestEntry{{Id: new("0"), ReceiptHandle: new(unknownReceipt)}},
		})
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	})
	return findings
}

func isDenied(code string) bool { return strings.HasPrefix(code, "AccessDenied") }

// queueRefused says what an error of SQS means for the operator.
func (x *examination) queueRefused(check, action string, err error) Finding {
	f := Finding{Check: check, Level: LevelProblem, Text: sentence(err), Advice: "check the queue's URL, the endpoint, and the way there"}
	_, missing := errors.AsType[*types.QueueDoesNotExist](err)
	api, answered := errors.AsType[smithy.APIError](err)
	switch {
	case missing:
		f.Advice = "check --sqs-queue-url: the queue has to be in the Region " + x.cfg.AWS.Region
	case answered && isDenied(api.ErrorCode()):
		f.Advice = "grant " + action + " on the queue"
	case answered && codes[api.ErrorCode()].credentials:
		f.Advice = "check the access key"
	case answered && strings.HasPrefix(api.ErrorCode(), "Kms"), answered && strings.HasPrefix(api.ErrorCode(), "KMS"):
		f.Advice = "grant kms:Decrypt on the key of the queue"
	}
	return f
}
