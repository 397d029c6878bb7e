package journal

import (
	"os"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func TestCursorsRoundTrip(t *testing.T) {
	id := newLogID()
	for _, p := range []Position{{}, {1, 2}, {^uint64(0), ^uint64(0)}} {
		gotID, got, err := decodeCursor(encodeCursor(id, p))
		if err != nil || gotID != id || got != p {
			t.Errorf("%v came back as %v of log %x, %v", p, got, gotID, err)
		}
	}
}

func TestUnreadableCursorsAreInvalid(t *testing.T) {
	cursor := encodeCursor(newLogID(), Position{7, 8})
	flipped := []byte(cursor)
	flipped[20] ^= 1
	for name, c := range map[string]string{
		"empty":           "",
		"garbage":         "not a cursor",
		"garbage as long": strings.Repeat("!", len(cursor)),
		"cut short":       cursor[:len(cursor)-1],
		"too long":        cursor + "A",
		"one bit off":     string(flipped),
		"padded":          cursor + "==",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := decodeCursor(c)
			wantReason(t, err, instance.KindInvalid, instance.ReasonCursorUnreadable)
		})
	}
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(encodeCursor(logID{1}, Position{2, 3}))
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, cursor string) {
		id, p, err := decodeCursor(cursor)
		if err == nil && encodeCursor(id, p) != cursor {
			t.Fatalf("%q and %q are cursors of one position", cursor, encodeCursor(id, p))
		}
	})
}

func TestCursorsOfThisLogResolve(t *testing.T) {
	j, term := own(t, testConfig(t))
	positions := []Position{j.Head(), set(t, term, id(1), instance.StateStopped), set(t, term, id(1), instance.StatePending)}
	for _, want := range positions {
		got, err := j.Resolve(t.Context(), j.Cursor(want))
		if err != nil || got != want {
			t.Errorf("%v resolved to %v, %v", want, got, err)
		}
	}
}

func TestACursorOfAnotherLogIsRefused(t *testing.T) {
	j := openJournal(t, testConfig(t))
	other := openJournal(t, testConfig(t))
	_, err := j.Resolve(t.Context(), other.Cursor(other.Head()))
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorOfOtherLog)
}

func TestACursorAheadOfTheLogIsRefused(t *testing.T) {
	j, term := own(t, testConfig(t))
	p := set(t, term, id(1), instance.StateStopped)
	p.Seq++
	_, err := j.Resolve(t.Context(), j.Cursor(p))
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorAhead)
}

// A directory is copied, written to, and then replaced by the copy: what was
// written between is gone, and never to be mixed up with what comes instead.
func TestACursorOfARolledBackLogIsRefused(t *testing.T) {
	for _, rewritten := range []bool{false, true} {
		name := map[bool]string{false: "and not written to since", true: "and written to since"}[rewritten]
		t.Run("restored from an older copy "+name, func(t *testing.T) {
			config := testConfig(t)
			backup := t.TempDir()

			j, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			kept := set(t, campaign(t, j), id(1), instance.StateStopped)
			keptCursor := j.Cursor(kept)
			closeJournal(t, j)
			copyDir(t, config.DataDir, backup)

			if j, err = Open(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			lost := j.Cursor(set(t, campaign(t, j), id(1), instance.StatePending))
			closeJournal(t, j)

			if err := os.RemoveAll(config.DataDir); err != nil {
				t.Fatal(err)
			}
			copyDir(t, backup, config.DataDir)
			j, term := own(t, config)
			if rewritten {
				set(t, term, id(1), instance.StatePending)
				set(t, term, id(1), instance.StateRunning)
			}
			_, err = j.Resolve(t.Context(), lost)
			wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorRolledBack)
			if got, err := j.Resolve(t.Context(), keptCursor); err != nil || got != kept {
				t.Errorf("the cursor from before the copy resolved to %v, %v, want %v", got, err, kept)
			}
		})
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestEpochsCoverThePositionsThatTheyWrote(t *testing.T) {
	g := epochs{}.withNew(0, launch).withNew(1, launch).withNew(5, launch)
	first, second, third := g[0].id, g[1].id, g[2].id
	for _, c := range []struct {
		name string
		p    Position
		want bool
	}{
		{"the place before the first batch", Position{first, 0}, true},
		{"a batch of another epoch", Position{first, 1}, false},
		{"the first of an epoch", Position{second, 1}, true},
		{"the last of an epoch", Position{second, 4}, true},
		{"past the end of an epoch", Position{second, 5}, false},
		{"the epoch that is being written", Position{third, 99}, true},
		{"an epoch that is not known", Position{third + 1, 5}, false},
	} {
		if got := g.cover(c.p); got != c.want {
			t.Errorf("%s: covered is %v, want %v", c.name, got, c.want)
		}
	}
	if h := g.withNew(5, launch); len(h) != 3 || h.last().id == third {
		t.Errorf("an epoch without batches was not replaced: %v", h)
	}
	if h := g.since(4); len(h) != 2 || h[0].id != second {
		t.Errorf("epochs since 4: %v, want the last two of %v", h, g)
	}
}
