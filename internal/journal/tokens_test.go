package journal

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/instanced/instanced/internal/instance"
)

func putToken(t *testing.T, term *Term, token Token) {
	t.Helper()
	if _, err := term.Update(t.Context(), func(tx *Tx) error { tx.PutToken(token); return nil }); err != nil {
		t.Fatal(err)
	}
}

// wantToken fails the test unless the journal has the token, or, for nil, has none.
func wantToken(t *testing.T, term *Term, key string, want *Token) {
	t.Helper()
	got, ok, err := term.Token(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ok != (want != nil) {
		t.Fatalf("token %q: found is %v", key, ok)
	}
	if want != nil {
		if diff := cmp.Diff(*want, got); diff != "" {
			t.Errorf("token %q (-want +got):\n%s", key, diff)
		}
	}
}

func TestATokenIsAnIntentAndThenAnAnswer(t *testing.T) {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	term := campaign(t, j)
	answered := *fullToken()
	answered.CreatedAt = time.Now().UTC().Round(0)
	intent := answered
	intent.Answer = nil
	wantToken(t, term, intent.Key, nil)
	putToken(t, term, intent)
	wantToken(t, term, intent.Key, &intent)

	// The answer comes together with the changes.
	if _, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(change(id(1), instance.StatePending))
		tx.PutToken(answered)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wantToken(t, term, answered.Key, &answered)
	if got := j.Stats().ClientTokens; got != 1 {
		t.Errorf("%d tokens, want 1", got)
	}
	unanswered := intent
	unanswered.Key = "bob/StartInstances/other/with/slashes"
	putToken(t, term, unanswered)
	closeJournal(t, j)

	j, term = own(t, config)
	wantToken(t, term, answered.Key, &answered)
	wantToken(t, term, unanswered.Key, &unanswered)
	if got := j.Stats().ClientTokens; got != 2 {
		t.Errorf("%d tokens after a restart, want 2", got)
	}
	if _, err := term.Update(t.Context(), func(tx *Tx) error { tx.DeleteToken(answered.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	wantToken(t, term, answered.Key, nil)
}

func TestTokensOfOneBatchDoNotMixUp(t *testing.T) {
	j, term := own(t, testConfig(t))
	at := time.Now().UTC().Round(0)
	token := func(n int, created time.Time, ids ...instance.ID) Token {
		return Token{Key: fmt.Sprint("token ", n), CreatedAt: created, IDs: ids}
	}
	first := token(1, at, id(1))
	putToken(t, term, first)
	// All in one update: replaced, replaced anew with another time, put and deleted.
	anew := token(1, at.Add(time.Second), id(2))
	kept := token(3, at, id(3))
	if _, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.PutToken(token(1, at, id(9)))
		tx.PutToken(anew)
		tx.PutToken(token(2, at))
		tx.DeleteToken("token 2")
		tx.DeleteToken("token 3")
		tx.PutToken(kept)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wantToken(t, term, anew.Key, &anew)
	wantToken(t, term, "token 2", nil)
	wantToken(t, term, kept.Key, &kept)
	x, err := j.store.loadTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantSameIndex(t, term.tokens, x)
	if len(x.byKey) != 2 {
		t.Errorf("%d tokens, want 2", len(x.byKey))
	}
}

// wantSameIndex fails the test unless the index is what a start makes of what is in etcd.
func wantSameIndex(t *testing.T, index, etcd *tokenIndex) {
	t.Helper()
	options := cmp.Options{
		cmp.AllowUnexported(tokenIndex{}, indexedToken{}, tokenUse{}), cmpopts.IgnoreTypes(sync.Mutex{}),
		cmpopts.IgnoreFields(tokenIndex{}, "byAge"), cmpopts.IgnoreFields(indexedToken{}, "place"),
	}
	if diff := cmp.Diff(index, etcd, options); diff != "" {
		t.Errorf("etcd and the index differ (-index +etcd):\n%s", diff)
	}
	for place, known := range index.byAge {
		if known.place != place || index.byKey[known.key] != known {
			t.Errorf("the token %q is not where it should be by age", known.key)
		}
	}
	if len(index.byAge) != len(index.byKey) {
		t.Errorf("%d tokens by age, and %d by key", len(index.byAge), len(index.byKey))
	}
}

func TestTooManyTokensAreRefused(t *testing.T) {
	config := testConfig(t)
	config.MaxClientTokens = 5 // 3 of which one principal may have
	j, term := own(t, config)
	put := func(keys ...string) error {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			for _, key := range keys {
				tx.PutToken(Token{Key: key})
			}
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		return err
	}
	if err := put("1", "2"); err != nil {
		t.Fatal(err)
	}
	head := j.Head()
	wantReason(t, put("3", "4"), instance.KindExhausted, instance.ReasonTooManyClientTokens)
	if j.Head() != head {
		t.Error("part of the refused update is recorded")
	}
	if err := put("3"); err != nil {
		t.Fatal(err)
	}
	if err := put("1", "2", "3"); err != nil {
		t.Errorf("tokens that are there cannot be answered: %v", err)
	}
	wantReason(t, put("4"), instance.KindExhausted, instance.ReasonTooManyClientTokens)
}

// Tokens that were kept before the limit was lowered may already exceed it.
func TestARefusedTokenIsToldWhichLimitIsReached(t *testing.T) {
	config := testConfig(t)
	j, term := own(t, config)
	created := time.Now().Add(-time.Hour).UTC()
	put := func(term *Term, key string) error {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			tx.PutToken(Token{Key: key, Principal: "worker", CreatedAt: created})
			return nil
		})
		return err
	}
	for _, key := range []string{"1", "2", "3", "4"} {
		if err := put(term, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	config.MaxClientTokens = 2
	j, term = own(t, config)
	err := put(term, "5")
	wantReason(t, err, instance.KindExhausted, instance.ReasonTooManyClientTokens)
	for _, part := range []string{
		`of the 2 that --max-client-tokens allows, "worker" holds 4 and all callers together hold 4`,
		"the oldest at " + created.Add(j.Config().TokenLifetime).Format(time.RFC3339),
	} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the refusal says %v, want %q in it", err, part)
		}
	}
}

func TestTokensExpire(t *testing.T) {
	config := testConfig(t)
	config.TokenLifetime = time.Hour
	j, term := own(t, config)
	now := time.Now()
	old := Token{Key: "old", CreatedAt: now.Add(-time.Hour - time.Second).UTC().Round(0)}
	young := Token{Key: "young", CreatedAt: now.Add(-time.Hour + time.Minute).UTC().Round(0), Fingerprint: []byte("f")}
	putToken(t, term, old)
	putToken(t, term, young)
	wantToken(t, term, "old", nil) // already before it is deleted
	wantToken(t, term, "young", &young)
	if n, err := term.expireTokens(t.Context(), now); err != nil || n != 1 {
		t.Fatalf("%d expired, %v", n, err)
	}
	x, err := j.store.loadTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantSameIndex(t, term.tokens, x)
	if x.byKey["young"] == nil || len(x.byKey) != 1 || j.Stats().ClientTokens != 1 {
		t.Errorf("in etcd are %v, and %d are counted", x.byKey, j.Stats().ClientTokens)
	}
}

func TestATokenWithoutATimeKeepsThatOfItsIntent(t *testing.T) {
	_, term := own(t, testConfig(t))
	putToken(t, term, Token{Key: "once"})
	intent, ok, err := term.Token(t.Context(), "once")
	if !ok || err != nil || time.Since(intent.CreatedAt) > time.Minute {
		t.Fatalf("%+v, %v, %v", intent, ok, err)
	}
	putToken(t, term, Token{Key: "once", Answer: &Answer{Cursor: "c"}})
	wantToken(t, term, "once", &Token{Key: "once", CreatedAt: intent.CreatedAt, Answer: &Answer{Cursor: "c"}})
}
