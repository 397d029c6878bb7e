package journal

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// crashEnv makes the test binary a process that writes to the directory it names.
const crashEnv = "JOURNAL_TEST_CRASH_DIR"

// writeUntilKilled prints each instance when its first record is acknowledged.
func writeUntilKilled(dir string) {
	ctx := context.Background()
	j, err := Open(ctx, Config{DataDir: dir, MinFreeDisk: -1})
	if err != nil {
		panic(err)
	}
	term, err := j.Campaign(ctx)
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	for writer := range 16 {
		go func() {
			for n := 0; ; n++ {
				c := change(id(writer<<32+n), instance.StateStopped)
				p, err := term.Update(ctx, func(tx *Tx) error {
					tx.Append(c)
					return nil
				})
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println(c.ID(), j.Cursor(p))
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestWhatWasAcknowledgedOutlivesAKill(t *testing.T) {
	dir := t.TempDir()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), crashEnv+"="+dir)
	child.Stderr = t.Output()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[instance.ID]string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var id instance.ID
		var cursor string
		if n, _ := fmt.Sscan(lines.Text(), &id, &cursor); n != 2 {
			break // cut off by the kill
		}
		acknowledged[id] = cursor
		if len(acknowledged) == 1000 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = child.Wait()
	if len(acknowledged) < 1000 {
		t.Fatalf("only %d writes were acknowledged", len(acknowledged))
	}
	j := openJournal(t, Config{DataDir: dir, MinFreeDisk: -1, Logger: testLogger(t)})
	for id, cursor := range acknowledged {
		p, err := j.Resolve(t.Context(), cursor)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if record, ok := j.Get(id); !ok || record.Position != p {
			t.Fatalf("%s was acknowledged at %v; known: %v, at %v", id, p, ok, record.Position)
		}
	}
	head := j.Head()
	if p := set(t, campaign(t, j), id(1), instance.StatePending); p.Seq != head.Seq+1 || p.Epoch == head.Epoch {
		t.Errorf("the log goes on at %v, after %v", p, head)
	}
}
