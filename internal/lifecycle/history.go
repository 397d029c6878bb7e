package lifecycle

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Events returns a page of the recorded history of instances.
func (s *Service) Events(ctx context.Context, caller Caller, req EventsRequest) (EventsResponse, error) {
	var c checker
	ids := c.ids("instance_ids", req.InstanceIDs, 1)
	size := c.pageSize(req.PageSize)
	scope := digest(append(sorted(instance.Strings(ids)), "after", req.AfterCursor)...)
	start := c.historyStart(req.PageToken, scope)
	if err := cmp.Or(c.err(), s.mayRead(caller)); err != nil {
		return EventsResponse{}, err
	}
	switch {
	case req.PageToken != "":
	case req.AfterCursor != "":
		position, err := s.resolve(ctx, "after_cursor", req.AfterCursor)
		if err != nil {
			return EventsResponse{}, err
		}
		start.after = position
	default:
		start.after = s.journal.Oldest()
	}
	page, err := s.journal.History(ctx, caller.Principal, ids, start.after, size+int(start.skip))
	if err != nil {
		return EventsResponse{}, err
	}
	entries := page.Entries
	entries = entries[min(int(start.skip), len(entries)):]
	response := EventsResponse{}
	bytes := 0
	for i, e := range entries {
		bytes += approximateSize(e.Change.Subject())
		if i == size || (i > 0 && bytes > MaxPageBytes) {
			response.NextPageToken = newPageToken(scope, start.before(page.Entries, i+int(start.skip)).encode())
			return response, nil
		}
		response.Events = append(response.Events, RecordedEvent{Position: e.Position, Index: e.Index, Change: e.Change})
	}
	if page.Done {
		response.Cursor = s.journal.Cursor(page.Next)
	} else {
		response.NextPageToken = newPageToken(scope, historyStart{after: page.Next}.encode())
	}
	return response, nil
}

// historyStart is where a page of history begins: after a position, skipping events that were
// returned before.
type historyStart struct {
	after journal.Position
	skip  uint32
}

// before returns the start of the page on which entries[next] comes first.
func (h historyStart) before(entries []journal.HistoryEntry, next int) historyStart {
	batch := entries[next].Position
	first := slices.IndexFunc(entries, func(e journal.HistoryEntry) bool { return e.Position == batch })
	if first == 0 {
		return historyStart{after: h.after, skip: uint32(next)}
	}
	return historyStart{after: entries[first-1].Position, skip: uint32(next - first)}
}

func (h historyStart) encode() string {
	b := binary.AppendUvarint(nil, h.after.Epoch)
	b = binary.AppendUvarint(b, h.after.Seq)
	return string(binary.AppendUvarint(b, uint64(h.skip)))
}

// historyStart returns the start of the page that a page token of a history is for.
func (c *checker) historyStart(token, scope string) historyStart {
	text := []byte(c.pageToken(token, scope))
	if len(text) == 0 {
		return historyStart{}
	}
	var fields [3]uint64
	for i := range fields {
		n, size := binary.Uvarint(text)
		if size <= 0 {
			c.add("page_token", "is damaged: want the next_page_token of the page before, as it was")
			return historyStart{}
		}
		fields[i], text = n, text[size:]
	}
	if len(text) > 0 || fields[2] > MaxPageSize*MaxInstanceIDs {
		c.add("page_token", "is damaged: want the next_page_token of the page before, as it was")
		return historyStart{}
	}
	return historyStart{after: journal.Position{Epoch: fields[0], Seq: fields[1]}, skip: uint32(fields[2])}
}
