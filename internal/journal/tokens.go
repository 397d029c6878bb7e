package journal

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
)

// Token is a client token: the intent to carry a request out and, once that was
// done, the answer.
type Token struct {
	// Key tells the token from every other: at most 1 KiB, of any bytes.
	Key string
	// Fingerprint is a digest of the request.
	Fingerprint []byte
	// CreatedAt is when the token is taken to have been created; it expires
	// [Config.TokenLifetime] later. It is the same in the intent and in the answer.
	CreatedAt time.Time
	// Intent is the head of the log when the intent was written.
	Intent Position
	// IDs are the instances that the request names.
	IDs []instance.ID
	// Answer is nil as long as there is only the intent.
	Answer *Answer
}

// Answer is what the first caller with a token was told. [instance.StateChange]'s
// After is not kept, nor is the Cause of an error.
type Answer struct {
	Changes           []instance.StateChange
	Failures          []instance.Failure
	Cursor, EndCursor string
}

// tokenIndex is which tokens there are, and how old they are, as of what the
// writer has gathered. What they say is read from etcd when somebody asks.
type tokenIndex struct {
	mu      sync.Mutex
	created map[string]time.Time
}

func (x *tokenIndex) get(key string) (created time.Time, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	created, ok = x.created[key]
	return created, ok
}

func (x *tokenIndex) len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.created)
}

// apply notes what becomes of tokens.
func (x *tokenIndex) apply(changes map[string]tokenChange) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, c := range changes {
		if c.deleted {
			delete(x.created, key)
		} else {
			x.created[key] = c.created
		}
	}
}

// drop forgets the tokens created before a time.
func (x *tokenIndex) drop(before time.Time) (dropped int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, created := range x.created {
		if created.Before(before) {
			delete(x.created, key)
			dropped++
		}
	}
	return dropped
}

// tokenChange is what becomes of one token in an update.
type tokenChange struct {
	created time.Time
	value   []byte // nil when deleted
	deleted bool
}

// loadTokens reads which tokens there are; their values stay where they are.
func (s *store) loadTokens(ctx context.Context) (*tokenIndex, error) {
	const page = 5000
	x := &tokenIndex{created: map[string]time.Time{}}
	from, end := s.keys.tokens, clientv3.GetPrefixRangeEnd(s.keys.tokens)
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithKeysOnly(), s.recent())
		if err != nil {
			return nil, err
		}
		for _, kv := range resp.Kvs {
			key, created, err := s.keys.token(kv.Key)
			if err != nil {
				return nil, err
			}
			x.created[key] = created
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			return x, nil
		}
	}
}

// Token returns a client token that was put during this term or an earlier one,
// and has not expired. Errors are [ReasonNotOwner] and [ReasonUnavailable], or
// those of ctx.
func (t *Term) Token(ctx context.Context, key string) (Token, bool, error) {
	if err := t.Err(); err != nil {
		return Token{}, false, err
	}
	ctx, leave, err := t.journal.enter(ctx)
	if err != nil {
		return Token{}, false, err
	}
	defer leave()
	s := t.journal.store
	created, ok := t.tokens.get(key)
	for ok && !created.Before(t.tokenHorizon(time.Now())) {
		resp, err := s.client.Get(ctx, s.keys.tokenKey(created, key), s.recent())
		if err != nil {
			return Token{}, false, unreachable(ctx, err)
		}
		if len(resp.Kvs) > 0 {
			token, err := s.token(key, resp.Kvs[0])
			return token, err == nil, err
		}
		// Deleted meanwhile, or created anew, under another key.
		before := created
		if created, ok = t.tokens.get(key); created.Equal(before) {
			break
		}
	}
	return Token{}, false, nil
}

// tokenHorizon is when the tokens that expire now were created.
func (t *Term) tokenHorizon(now time.Time) time.Time {
	return now.Add(-t.journal.config.TokenLifetime)
}

// expireTokens deletes the tokens that have expired, in one range.
func (t *Term) expireTokens(ctx context.Context, now time.Time) error {
	horizon := t.tokenHorizon(now)
	if t.tokens.drop(horizon) == 0 {
		return nil
	}
	k := &t.journal.store.keys
	return t.change(ctx, anchor{}, clientv3.OpDelete(k.tokens, clientv3.WithRange(k.tokensBefore(horizon))))
}

func appendToken(b []byte, t *Token) []byte {
	m := &storagev1.Token{
		Fingerprint:      t.Fingerprint,
		CreatedAtNs:      nanoseconds(t.CreatedAt),
		IntentGeneration: t.Intent.Generation,
		IntentSeq:        t.Intent.Seq,
		InstanceIds:      fromIDs(t.IDs),
	}
	if a := t.Answer; a != nil {
		m.Answer = &storagev1.Answer{Cursor: a.Cursor, EndCursor: a.EndCursor}
		for _, c := range a.Changes {
			m.Answer.Changes = append(m.Answer.Changes, &storagev1.StateChange{
				InstanceId: string(c.ID),
				Previous:   storagev1.InstanceState(c.Previous),
				Current:    storagev1.InstanceState(c.Current),
				AtNs:       nanoseconds(c.At),
			})
		}
		for _, f := range a.Failures {
			m.Answer.Failures = append(m.Answer.Failures, &storagev1.Failure{
				InstanceId: string(f.ID), Error: encodeError(f.Err),
			})
		}
	}
	return appendMessage(b, m)
}

// token decodes a client token that was read.
func (s *store) token(key string, kv *mvccpb.KeyValue) (Token, error) {
	message, err := s.unseal(kv)
	if err != nil {
		return Token{}, err
	}
	t, err := decodeToken(key, message)
	if err != nil {
		return Token{}, damagedValue(kv.Key, err)
	}
	return t, nil
}

func decodeToken(key string, message []byte) (Token, error) {
	var m storagev1.Token
	if err := proto.Unmarshal(message, &m); err != nil {
		return Token{}, err
	}
	t := Token{
		Key:         key,
		Fingerprint: m.GetFingerprint(),
		CreatedAt:   fromNanoseconds(m.GetCreatedAtNs()),
		Intent:      Position{Generation: m.GetIntentGeneration(), Seq: m.GetIntentSeq()},
		IDs:         toIDs(m.GetInstanceIds()),
	}
	if a := m.GetAnswer(); a != nil {
		t.Answer = &Answer{Cursor: a.GetCursor(), EndCursor: a.GetEndCursor()}
		for _, c := range a.GetChanges() {
			t.Answer.Changes = append(t.Answer.Changes, instance.StateChange{
				ID:       instance.ID(c.GetInstanceId()),
				Previous: instance.State(c.GetPrevious()),
				Current:  instance.State(c.GetCurrent()),
				At:       fromNanoseconds(c.GetAtNs()),
			})
		}
		for _, f := range a.GetFailures() {
			t.Answer.Failures = append(t.Answer.Failures, instance.Failure{
				ID: instance.ID(f.GetInstanceId()), Err: decodeError(f.GetError()),
			})
		}
	}
	return t, nil
}

// encodeError keeps what the caller was told. The violations of an error that is
// invalid as a whole do not occur in the failure of one instance.
func encodeError(e *instance.Error) *storagev1.Error {
	return &storagev1.Error{
		Kind:           storagev1.ErrorKind(e.Kind) + 1,
		Code:           e.Code,
		Reason:         e.Reason,
		Message:        e.Message,
		InstanceIds:    fromIDs(e.InstanceIDs),
		RetryAfterNs:   int64(e.RetryAfter),
		OutcomeUnknown: e.OutcomeUnknown,
		Metadata:       e.Metadata,
	}
}

func decodeError(m *storagev1.Error) *instance.Error {
	return &instance.Error{
		Kind:           instance.Kind(max(m.GetKind(), 1) - 1),
		Code:           m.GetCode(),
		Reason:         m.GetReason(),
		Message:        m.GetMessage(),
		InstanceIDs:    toIDs(m.GetInstanceIds()),
		RetryAfter:     time.Duration(m.GetRetryAfterNs()),
		OutcomeUnknown: m.GetOutcomeUnknown(),
		Metadata:       m.GetMetadata(),
	}
}

func fromIDs(ids []instance.ID) []string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = string(id)
	}
	return texts
}

func toIDs(texts []string) []instance.ID {
	if len(texts) == 0 {
		return nil
	}
	ids := make([]instance.ID, len(texts))
	for i, text := range texts {
		ids[i] = instance.ID(text)
	}
	return ids
}
