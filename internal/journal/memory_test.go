package journal

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// heapBytes returns what the heap holds that is not garbage.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // what the first one only marked to be finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// described returns an instance with strings and maps of its own, as EC2's client makes it.
func described(n, turn, tags int) *instance.Instance {
	i := machine(instance.ID(strings.Clone(string(id(n)))), instance.StateRunning)
	for _, s := range []*string{&i.AccountID, &i.Region, &i.AvailabilityZone, &i.Type, &i.PrivateIPAddress, &i.Tenancy, &i.RootDeviceType} {
		*s = strings.Clone(*s)
	}
	i.PublicIPAddress = fmt.Sprintf("203.0.%d.%d", turn, n)
	i.ImageID = strings.Clone("ami-0abcdef1234567890")
	i.PrivateDNSName, i.PublicDNSName = i.UsualPrivateDNSName(), i.UsualPublicDNSName()
	i.Tags = map[string]string{}
	for n := range tags {
		i.Tags[fmt.Sprintf("key-%d", n)] = strings.Repeat("v", 40)
	}
	return i
}

// simulated returns the next image of an instance of the simulator, which shares all but
// its attributes.
func simulated(before *instance.Instance, turn int) *instance.Instance {
	next := *before
	next.Simulator = &instance.SimulatorAttributes{CPUCredits: "standard", Transitions: uint64(turn), NextReason: &instance.StateReason{}}
	return &next
}

// TestTheRingIsCountedInWhatItTakes compares what the ring says that it takes with the heap,
// for changes as they come: from EC2, the simulator, and the log; in large batches and
// small ones; with subscribers and without.
//
// It runs in a process of its own, since garbage of earlier tests is freed at any time.
func TestTheRingIsCountedInWhatItTakes(t *testing.T) {
	const alone = "INSTANCED_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), alone+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	const instances = 200
	cause := func(turn, n int) instance.Cause {
		return instance.Cause{
			Principal: fmt.Sprintf("arn:aws:sts::123456789012:caller-%d", n), Verb: instance.VerbStart,
			RequestID: fmt.Sprintf("request-%d-of-caller-%d", turn, n),
		}
	}
	fromEC2 := func(tags int) func(n, turn int, known *instance.Instance) *instance.Instance {
		return func(n, turn int, known *instance.Instance) *instance.Instance { return described(n, turn, tags) }
	}
	for _, tc := range []struct {
		name string
		next func(n, turn int, known *instance.Instance) *instance.Instance
		// size is how many changes a batch has.
		size int
		// replayed is whether the batches are read from the log.
		replayed bool
		// encoded is how many bytes each change is encoded to for readers.
		encoded int
	}{
		{"from EC2", fromEC2(0), 100, false, 0},
		{"with tags", fromEC2(5), 100, false, 0},
		{"with many tags", fromEC2(40), 100, false, 0},
		{"from EC2, read from the log", fromEC2(5), 100, true, 0},
		{"of the simulator", func(n, turn int, known *instance.Instance) *instance.Instance {
			if known == nil {
				return described(n, turn, 5)
			}
			return simulated(known, turn)
		}, 100, false, 0},
		{"in batches of one", fromEC2(5), 1, false, 0},
		{"encoded for subscribers", fromEC2(5), 20, false, 700},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := newView(1 << 40)
			v.restore(logID{}, epochs{}.withNew(0, time.Now()), 0, 0, map[instance.ID]*Record{})
			seq := uint64(0)
			turn := func(number int) {
				var b *Batch
				var wire []byte
				publish := func() {
					if tc.replayed {
						var err error
						if b, _, err = decodeBatch(seq, codec.AppendHeader(wire, b.Position.Epoch, time.Now(), 0)); err != nil {
							t.Fatal(err)
						}
					}
					if !v.publish(published{batch: b}) {
						t.Fatal("the batch does not follow")
					}
					if tc.encoded > 0 {
						b.Memo(func() [][]byte { return [][]byte{make([]byte, tc.encoded*tc.size)} })
						for n := range b.Events {
							b.Events[n].Memo(func() []byte { return make([]byte, tc.encoded) })
						}
					}
					b, wire = nil, nil
				}
				for n := range instances {
					if b == nil {
						seq++
						b = newBatch(Position{v.listEpochs()[0].id, seq}, tc.size)
					}
					c := instance.Change{Type: instance.ChangeAttributes, Cause: cause(number, n)}
					if known, ok := v.get(id(n)); ok {
						c.Before = known.Instance
					}
					c.After = share(tc.next(n, number, c.Before), c.Before)
					wire = codec.AppendChange(wire, &c)
					b.add(newEntry(c))
					if len(b.Events) == tc.size {
						publish()
					}
				}
			}
			turn(0)
			counted, held := -v.ring.used.Load(), -heapBytes()
			for number := range 50 {
				turn(number + 1)
			}
			counted, held = counted+v.ring.used.Load(), held+heapBytes()
			t.Logf("%d bytes counted, %d held: %d for each change", counted, held, held/(50*instances))
			if counted < held*85/100 || counted > held*125/100 {
				t.Errorf("the ring counts %d bytes, and the heap has %d more", counted, held)
			}
			runtime.KeepAlive(v)
		})
	}
}

// TestTheRingStaysWithinItsBytes has what is encoded for readers counted, whenever it is made.
func TestTheRingStaysWithinItsBytes(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 256 << 10
	j, term := own(t, config)
	from := j.Head()
	for n := range 100 {
		set(t, term, id(n%7), instance.States()[n%6])
	}
	held := j.Stats().RingBatches
	if held != 100 {
		t.Fatalf("%d batches are in the ring, want all", held)
	}
	r := j.Read(from)
	for range 100 {
		b, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.Memo(func() [][]byte { return [][]byte{make([]byte, 10_000)} })
		b.Events[0].Memo(func() []byte { return make([]byte, 10_000) })
		if s := j.Stats(); s.RingBytes > config.RingBytes || s.RingBytes < 0 {
			t.Fatalf("the ring takes %d bytes, want at most %d", s.RingBytes, config.RingBytes)
		}
	}
	if now := j.Stats().RingBatches; now >= held {
		t.Errorf("%d batches are in the ring, want fewer than %d", now, held)
	}
}

// An image that EC2 describes anew holds no more than what is different.
func TestConsecutiveImagesShareWhatIsEqual(t *testing.T) {
	j, term := own(t, testConfig(t))
	for turn := range 2 {
		if _, err := term.Update(t.Context(), func(tx *Tx) error {
			tx.Append(instance.Change{After: described(1, turn, 3)})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	known, _ := j.Get(id(1))
	if !sameMap(known.Instance.Tags, known.Previous.Tags) {
		t.Error("the tags are held twice")
	}
	if want := described(1, 1, 3); !known.Instance.Equal(want) {
		t.Errorf("got %v, want %v", known.Instance, want)
	}
	if !maps.Equal(known.Previous.Tags, described(1, 0, 3).Tags) || known.Previous.PublicIPAddress == known.Instance.PublicIPAddress {
		t.Errorf("the image before is now %v", known.Previous)
	}
}
