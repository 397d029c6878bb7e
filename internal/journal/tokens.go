package journal

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// Token is a client token: the intent to carry a request out and, once that was
// done, the answer.
type Token struct {
	// Key tells the token from every other: at most 1 KiB, of any bytes.
	Key string
	// Principal is whose token it is: each has a share of those that are kept. It is empty
	// for tokens that were recorded before principals were.
	Principal string
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

// tokenChange is what becomes of one token in an update.
type tokenChange struct {
	created   time.Time
	principal string
	value     []byte // nil when deleted
	// bytes is what the token counts for.
	bytes   int64
	deleted bool
}

// answerBytes and answerBytesPerID are what an intent counts for beside its own size, so
// that there is room for the answer, which is never refused.
const answerBytes, answerBytesPerID = 128, 40

// countedBytes returns what a token counts for, given what is stored for it: the key in etcd
// and the value.
func countedBytes(stored int, t *Token) int64 {
	if t.Answer == nil {
		stored += answerBytes + answerBytesPerID*len(t.IDs)
	}
	return int64(stored)
}

// loadTokens reads which tokens there are. What they say is not kept.
func (s *store) loadTokens(ctx context.Context) (*tokenIndex, error) {
	const firstPage, largestPage, bytes = 50, 5000, 4 << 20
	x := newTokenIndex()
	from, end := s.keys.tokens, clientv3.GetPrefixRangeEnd(s.keys.tokens)
	for page := int64(firstPage); ; {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), s.recent())
		if err != nil {
			return nil, err
		}
		read := int64(0)
		for _, kv := range resp.Kvs {
			key, created, err := s.keys.token(kv.Key)
			if err != nil {
				return nil, err
			}
			// One that is damaged takes as much room; who asks for it is told.
			token, _ := s.token(key, kv)
			stored := len(kv.Key) + len(kv.Value)
			x.put(key, created, token.Principal, countedBytes(stored, &token))
			read += int64(stored)
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			return x, nil
		}
		page = min(max(page*bytes/max(read, 1), 1), 2*page, largestPage)
	}
}

// Token returns a client token that was put during this term or an earlier one,
// and has not expired. It fails with [instance.ReasonNotOwner],
// [instance.ReasonJournalUnavailable] or the error of ctx.
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

// expireTokens deletes the tokens that have expired, and says how many.
func (t *Term) expireTokens(ctx context.Context, now time.Time) (expired int, err error) {
	k := &t.journal.store.keys
	if t.tokens == nil { // in a term that has not begun
		return 0, t.change(ctx, logPoint{}, clientv3.OpDelete(k.tokens, clientv3.WithRange(k.tokensBefore(t.tokenHorizon(now)))))
	}
	for {
		oldest := t.tokens.createdBefore(t.tokenHorizon(now), maxTrimKeys)
		if len(oldest) == 0 {
			return expired, nil
		}
		last := oldest[len(oldest)-1]
		end := k.tokenKey(last.created, last.key) + "\x00"
		if err := t.change(ctx, logPoint{}, clientv3.OpDelete(k.tokens, clientv3.WithRange(end))); err != nil {
			return expired, err
		}
		t.tokens.drop(oldest)
		expired += len(oldest)
	}
}

// appendToken encodes a token of a log, in the compact form if so.
func appendToken(b []byte, t *Token, log logID, compactly bool) []byte {
	m := &storagev1.Token{
		Fingerprint:      t.Fingerprint,
		CreatedAtNs:      codec.Nanoseconds(t.CreatedAt),
		IntentGeneration: t.Intent.Epoch,
		IntentSeq:        t.Intent.Seq,
		InstanceIds:      instance.Strings(t.IDs),
		Principal:        t.Principal,
	}
	if a := t.Answer; a != nil {
		m.Answer = &storagev1.Answer{Cursor: a.Cursor, EndCursor: a.EndCursor}
		for _, c := range a.Changes {
			m.Answer.Changes = append(m.Answer.Changes, &storagev1.StateChange{
				InstanceId: string(c.ID),
				Previous:   storagev1.InstanceState(c.Previous),
				Current:    storagev1.InstanceState(c.Current),
				AtNs:       codec.Nanoseconds(c.At),
			})
		}
		for _, f := range a.Failures {
			m.Answer.Failures = append(m.Answer.Failures, &storagev1.Failure{
				InstanceId: string(f.ID), Error: encodeError(f.Err),
			})
		}
	}
	if compactly {
		compact(m, t, log)
	}
	return appendMessage(b, m)
}

// logID returns the id of the log, once that is known.
func (s *store) logID() logID { return logID(s.meta.Load().GetLogId()) }

// token decodes a client token that was read.
func (s *store) token(key string, kv *mvccpb.KeyValue) (Token, error) {
	message, err := s.unseal(kv)
	if err != nil {
		return Token{}, err
	}
	t, err := decodeToken(key, message, s.logID())
	if err != nil {
		return Token{}, damagedValue(kv.Key, err)
	}
	return t, nil
}

func decodeToken(key string, message []byte, log logID) (Token, error) {
	var m storagev1.Token
	if err := proto.Unmarshal(message, &m); err != nil {
		return Token{}, err
	}
	t := Token{
		Key:         key,
		Fingerprint: m.GetFingerprint(),
		CreatedAt:   codec.Time(m.GetCreatedAtNs()),
		Intent:      Position{Epoch: m.GetIntentGeneration(), Seq: m.GetIntentSeq()},
		IDs:         toIDs(m.GetInstanceIds()),
		Principal:   m.GetPrincipal(),
	}
	var err error
	if packed := m.GetPackedIds(); len(packed) > 0 {
		if t.IDs, err = codec.DecodeIDs(packed); err != nil {
			return Token{}, err
		}
	}
	if t.Answer, err = compacted(&m, t.IDs, log); err != nil {
		return Token{}, err
	}
	if a := m.GetAnswer(); a != nil && t.Answer == nil {
		t.Answer = &Answer{Cursor: a.GetCursor(), EndCursor: a.GetEndCursor(), Failures: toFailures(a.GetFailures())}
		for _, c := range a.GetChanges() {
			t.Answer.Changes = append(t.Answer.Changes, instance.StateChange{
				ID:       instance.ID(c.GetInstanceId()),
				Previous: instance.State(c.GetPrevious()),
				Current:  instance.State(c.GetCurrent()),
				At:       codec.Time(c.GetAtNs()),
			})
		}
	}
	return t, nil
}

func toFailures(stored []*storagev1.Failure) (failures []instance.Failure) {
	for _, f := range stored {
		failures = append(failures, instance.Failure{ID: instance.ID(f.GetInstanceId()), Err: decodeError(f.GetError())})
	}
	return failures
}

// encodeError keeps what the caller was told. The violations of an error that is
// invalid as a whole do not occur in the failure of one instance.
func encodeError(e *instance.Error) *storagev1.Error {
	return &storagev1.Error{
		Kind:           storagev1.ErrorKind(e.Kind) + 1,
		Code:           e.Code,
		Reason:         e.Reason,
		Message:        e.Message,
		InstanceIds:    instance.Strings(e.InstanceIDs),
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
