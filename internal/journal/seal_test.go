package journal

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/instanced/instanced/internal/instance"
)

// sealedJournal is a journal that has a value of each kind.
func sealedJournal(t testing.TB) *Journal {
	t.Helper()
	j, term := own(t, testConfig(t))
	for n := range 3 {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			for m := range 1 + 10*n { // the last ones are packed
				tx.Append(change(id(m), instance.States()[n]))
			}
			tx.PutToken(Token{Key: "token", IDs: []instance.ID{id(n)}})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	return j
}

func TestEveryFlippedBitOfAStoredValueIsNoticed(t *testing.T) {
	j := sealedJournal(t)
	kinds := map[string]bool{}
	for _, kv := range stores(t, j) {
		kinds[string(kv.Key[:len(j.store.keys.prefix)+3])] = true
		if _, err := j.store.unseal(kv); err != nil {
			t.Fatalf("as it was written: %v", err)
		}
		for bit := range 8 * len(kv.Value) {
			flipped := &mvccpb.KeyValue{Key: kv.Key, Value: slices.Clone(kv.Value), ModRevision: kv.ModRevision}
			flipped.Value[bit/8] ^= 1 << (bit % 8)
			_, err := j.store.unseal(flipped)
			if string(kv.Key) == j.store.keys.meta { // which is read before it is known what it says
				_, err = j.store.readMeta(flipped)
			}
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d of the value of %s: %v", bit, kv.Key, err)
			}
		}
		for range 100 { // any other damage
			damaged := &mvccpb.KeyValue{Key: kv.Key, Value: slices.Clone(kv.Value), ModRevision: kv.ModRevision}
			from := rand.IntN(len(kv.Value))
			for i := from; i < min(from+8, len(kv.Value)); i++ {
				damaged.Value[i] = byte(rand.Int())
			}
			if _, err := j.store.unseal(damaged); err == nil && !slices.Equal(damaged.Value, kv.Value) {
				t.Errorf("%x of %s is taken for %x", damaged.Value, kv.Key, kv.Value)
			}
		}
	}
	if len(kinds) < 5 { // control, instances, log, meta, tokens
		t.Errorf("there is only %v", kinds)
	}
}

func TestAValueUnderAnotherKeyIsNoticed(t *testing.T) {
	j := sealedJournal(t)
	kvs := stores(t, j)
	for i, kv := range kvs {
		other := kvs[(i+1)%len(kvs)]
		moved := &mvccpb.KeyValue{Key: other.Key, Value: kv.Value, ModRevision: kv.ModRevision}
		if _, err := j.store.unseal(moved); !errors.Is(err, ErrDamaged) {
			t.Errorf("the value of %s at %s: %v", kv.Key, other.Key, err)
		}
	}
}

func TestSealingAllocatesNothing(t *testing.T) {
	j := sealedJournal(t)
	key, message := j.store.keys.logKey(1), make([]byte, 1000)
	buffer := make([]byte, 0, 2000)
	if n := testing.AllocsPerRun(100, func() {
		b := append(j.store.reserveSeal(buffer[:0]), message...)
		j.store.seal(b, 0, key)
	}); n != 0 {
		t.Errorf("it takes %v allocations", n)
	}
}

// FuzzUnseal: whatever etcd holds, it is the message that was sealed for that key, or
// damaged.
func FuzzUnseal(f *testing.F) {
	s := &store{keys: newKeys("/fuzz")}
	s.meta.Store(newMeta(newLogID(), launch))
	f.Add([]byte("/fuzz/meta"), []byte{})
	f.Add([]byte("/"), []byte{sealMark, 1, 2})
	for _, key := range []string{"/fuzz/meta", "/fuzz/log/1"} {
		f.Add([]byte(key), s.seal(append(s.reserveSeal(nil), "message"...), 0, key))
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		message, err := s.unseal(&mvccpb.KeyValue{Key: key, Value: value, ModRevision: 1})
		if err != nil {
			return
		}
		if again := s.seal(append(s.reserveSeal(nil), message...), 0, string(key)); !slices.Equal(again, value) {
			t.Errorf("%x is the message of %x, and is sealed as %x", message, value, again)
		}
	})
}
