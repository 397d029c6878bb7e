package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/internal/instance"
)

// recordings are the watches in a file, in the order of their messages.
type recordings struct {
	logID   string
	lines   int
	watches []*recording
	// cut is whether the last line is incomplete.
	cut bool
}

// recording is one watch. A part of it begins with each snapshot.
type recording struct {
	parts []*conformance.Connection
	// cursor is the last one, and open is whether a snapshot is incomplete.
	cursor string
	open   bool
}

// readRecording reads what `watch -o json` printed.
func (t *Terminal) readRecording(name string) (*recordings, error) {
	f, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if name == "-" {
		name = "standard input"
	}
	all := &recordings{}
	in := bufio.NewReader(f)
	for number := 1; ; number++ {
		line, err := in.ReadBytes('\n')
		last := errors.Is(err, io.EOF)
		if errors.Is(err, syscall.EISDIR) {
			return nil, Usagef("%s is a directory; verify reads %s", name, t.watchOutput())
		}
		if err != nil && !last {
			return nil, fmt.Errorf("cannot read %s: %w", name, errors.Unwrap(err))
		}
		if text := bytes.TrimSpace(line); len(text) > 0 {
			wrong := all.add(text)
			// A writer that was killed leaves a part of a line.
			if wrong != nil && last && all.lines > 0 {
				all.cut = true
			} else if wrong != nil {
				return nil, Usagef("%s, line %d: %v; verify reads %s", name, number, wrong, t.watchOutput())
			}
		}
		if last {
			break
		}
	}
	if all.lines == 0 {
		return nil, Usagef("%s is empty; verify reads %s", name, t.watchOutput())
	}
	return all, nil
}

// add takes one line.
func (all *recordings) add(text []byte) error {
	m := &instancedv1.WatchInstancesResponse{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m); err != nil || m.GetMessage() == nil {
		return errors.New("not a message of a watch")
	}
	all.lines++
	s := m.GetSubscribed()
	if len(all.watches) == 0 || s != nil && !all.goesOn(m) {
		all.watches = append(all.watches, &recording{})
	}
	if s != nil {
		all.logID = s.GetLogId()
	}
	all.watches[len(all.watches)-1].add(m)
	return nil
}

// goesOn reports whether a stream continues the previous one: after its last cursor, or with a
// snapshot.
func (all *recordings) goesOn(m *instancedv1.WatchInstancesResponse) bool {
	w := all.watches[len(all.watches)-1]
	return m.GetSubscribed().GetLogId() == all.logID && (m.GetCursor() == "" || m.GetCursor() == w.cursor)
}

func (w *recording) add(m *instancedv1.WatchInstancesResponse) {
	if len(w.parts) == 0 || m.GetSnapshot().GetFirst() && !w.open && w.parts[len(w.parts)-1].Cursor() != "" {
		w.parts = append(w.parts, &conformance.Connection{Request: &instancedv1.WatchInstancesRequest{}, Followed: true})
	}
	if s := m.GetSnapshot(); s != nil {
		w.open = !s.GetLast()
	}
	w.cursor = cmp.Or(m.GetCursor(), w.cursor)
	part := w.parts[len(w.parts)-1]
	part.Messages = append(part.Messages, conformance.Message{WatchInstancesResponse: m})
}

// alone checks the recordings by themselves.
func (all *recordings) alone() *verification {
	var findings [][]conformance.Finding
	streams := 0
	for _, w := range all.watches {
		findings = append(findings, conformance.Alone(w.parts...))
		for _, part := range w.parts {
			for _, m := range part.Messages {
				if m.GetSubscribed() != nil {
					streams++
				}
			}
		}
	}
	r := &verification{Checked: fmt.Sprintf("Read %s of %s.", Counted(all.lines, "message"), Counted(streams, "stream"))}
	if all.watches[0].parts[0].Messages[0].GetSubscribed() == nil {
		r.Checked += " The beginning is missing: each stream starts with a message \"subscribed\"."
	}
	if n := len(all.watches); n > 1 {
		r.Checked += fmt.Sprintf(" They belong to %d watches: not every stream continues the one before it.", n)
	}
	if all.cut {
		r.Checked += " The last line is cut off and was ignored."
	}
	r.add(conformance.Together(findings...))
	return r
}

// compare compares the recordings with the history of a service.
func (all *recordings) compare(ctx context.Context, c *client.Client, r *verification) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if all.logID != info.GetLogId() {
		return &verdict{status: ExitRefused, lines: []string{fmt.Sprintf(
			"the recording is of log %s but the service has log %s: they cannot be compared", cmp.Or(all.logID, "(unknown)"), info.GetLogId())}}
	}
	var findings [][]conformance.Finding
	compared := 0
	for _, w := range all.watches {
		for _, part := range w.parts {
			complete := conformance.Finding{Promise: "Complete", Unit: "event"}
			if complete.Checked, complete.Err, err = r.compare(ctx, c, part); err != nil {
				return err
			}
			snapshot := conformance.Finding{Promise: "Snapshot"} // is counted already
			var n int
			if n, snapshot.Err, err = r.compareSnapshot(ctx, c, part); err != nil {
				return err
			}
			compared += n
			findings = append(findings, []conformance.Finding{snapshot, complete})
		}
	}
	r.add(conformance.Together(findings...))
	if compared == 0 && r.InstancesNotCompared > 0 {
		r.formOnly("Snapshot")
	}
	return nil
}

// compareSnapshot compares the snapshot of one part of a recording with the history of its
// instances. It returns how many instances it compared and what is wrong with them.
func (r *verification) compareSnapshot(ctx context.Context, c *client.Client, part *conformance.Connection) (n int, broken, err error) {
	begin := beginning(part)
	if begin == "" {
		return 0, nil, nil // it is incomplete
	}
	// In this order, changes recorded meanwhile are among the later ones.
	kept, err := historyOf(ctx, c, conformance.Mentioned(part), "")
	if err != nil {
		return 0, nil, err
	}
	after, err := historyOf(ctx, c, conformance.Mentioned(part), begin)
	switch {
	case expired(err):
		kept = nil // all of it came after the snapshot
	case err != nil:
		return 0, nil, err
	case len(after) > 0:
		kept = slices.DeleteFunc(kept, func(e *instancedv1.Event) bool { return !before(e, after[0]) })
	}
	n, unknown, broken := conformance.RecordedSnapshot(part, kept)
	r.InstancesNotCompared += unknown
	return n, broken, nil
}

// beginning returns the first cursor of a part of a recording, which is that of its snapshot
// if it has one.
func beginning(part *conformance.Connection) string {
	for _, m := range part.Messages {
		if m.GetCursor() != "" {
			return m.GetCursor()
		}
	}
	return ""
}

// compare compares one part of a recording with the history of the instances in it. It returns
// how many events it compared and what is wrong with them.
func (r *verification) compare(ctx context.Context, c *client.Client, part *conformance.Connection) (n int, broken, err error) {
	begin := beginning(part)
	if begin == "" {
		return 0, nil, nil // there is nothing to compare
	}
	ids, events := conformance.Mentioned(part), part.Events()
	whole := true
	history, err := historyOf(ctx, c, ids, begin)
	if expired(err) {
		whole = false
		history, err = historyOf(ctx, c, ids, "")
	}
	if err != nil {
		return 0, nil, err
	}
	// Changes after the last cursor are beyond the end of the recording.
	later, err := historyOf(ctx, c, ids, part.Cursor())
	switch {
	case expired(err):
		r.NotCompared += len(events)
		return 0, nil, nil
	case err != nil:
		return 0, nil, err
	case len(later) > 0:
		history = slices.DeleteFunc(history, func(e *instancedv1.Event) bool { return !before(e, later[0]) })
	}
	n = len(events)
	if !whole {
		older := slices.IndexFunc(events, func(e *instancedv1.Event) bool { return len(history) > 0 && !before(e, history[0]) })
		if older < 0 {
			older = len(events)
		}
		n -= older
		r.NotCompared += older
	}
	return n, conformance.Recorded(part, history, whole), nil
}

// before reports whether one event was recorded before another.
func before(a, b *instancedv1.Event) bool {
	return cmp.Or(cmp.Compare(a.GetRevision(), b.GetRevision()), cmp.Compare(a.GetIndex(), b.GetIndex())) < 0
}

// expired reports whether a request failed because the history is no longer kept.
func expired(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Reason == instance.ReasonCursorExpired
}
