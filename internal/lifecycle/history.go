package lifecycle

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/instanced/instanced/internal/journal"
)

// Events returns a page of the recorded history of instances.
func (s *Service) Events(ctx context.Context, caller Caller, req EventsRequest) (EventsResponse, error) {
	var c checker
	ids := c.ids("instance_ids", req.InstanceIDs, 1)
	size := c.pageSize(req.PageSize)
	scope := digest(append(sorted(idStrings(ids)), "after", req.AfterCursor)...)
	mark := c.historyMark(req.PageToken, scope)
	if err := c.err(); err != nil {
		return EventsResponse{}, err
	}
	switch {
	case req.PageToken != "":
	case req.AfterCursor != "":
		position, err := s.resolve(ctx, "after_cursor", req.AfterCursor)
		if err != nil {
			return EventsResponse{}, err
		}
		mark.after = position
	default:
		mark.after = s.journal.Oldest()
	}
	page, err := s.journal.History(ctx, caller.Principal, ids, mark.after, size+int(mark.skip))
	if err != nil {
		return EventsResponse{}, err
	}
	entries := page.Entries
	entries = entries[min(int(mark.skip), len(entries)):]
	response := EventsResponse{}
	bytes := 0
	for i, e := range entries {
		bytes += approximateSize(e.Change.Subject())
		if i == size || (i > 0 && bytes > MaxPageBytes) {
			response.NextPageToken = newPageToken(scope, mark.before(page.Entries, i+int(mark.skip)).encode())
			return response, nil
		}
		response.Events = append(response.Events, RecordedEvent{Position: e.Position, Index: e.Index, Change: e.Change})
	}
	if page.Done {
		response.Cursor = s.journal.Cursor(page.Next)
	} else {
		response.NextPageToken = newPageToken(scope, historyMark{after: page.Next}.encode())
	}
	return response, nil
}

// historyMark says where a page of history begins: after a position, without the first
// few events, which were returned before.
type historyMark struct {
	after journal.Position
	skip  uint32
}

// before returns the mark at which entries[next] comes first.
func (m historyMark) before(entries []journal.HistoryEntry, next int) historyMark {
	batch := entries[next].Position
	first := slices.IndexFunc(entries, func(e journal.HistoryEntry) bool { return e.Position == batch })
	if first == 0 {
		return historyMark{after: m.after, skip: uint32(next)}
	}
	return historyMark{after: entries[first-1].Position, skip: uint32(next - first)}
}

func (m historyMark) encode() string {
	b := binary.AppendUvarint(nil, m.after.Epoch)
	b = binary.AppendUvarint(b, m.after.Seq)
	return string(binary.AppendUvarint(b, uint64(m.skip)))
}

// historyMark returns what stands in a page token of a history.
func (c *checker) historyMark(token, scope string) historyMark {
	text := []byte(c.pageToken(token, scope))
	if len(text) == 0 {
		return historyMark{}
	}
	var fields [3]uint64
	for i := range fields {
		n, size := binary.Uvarint(text)
		if size <= 0 {
			c.add("page_token", "is damaged: want the next_page_token of the page before, as it was")
			return historyMark{}
		}
		fields[i], text = n, text[size:]
	}
	if len(text) > 0 || fields[2] > MaxPageSize*MaxInstanceIDs {
		c.add("page_token", "is damaged: want the next_page_token of the page before, as it was")
		return historyMark{}
	}
	return historyMark{after: journal.Position{Epoch: fields[0], Seq: fields[1]}, skip: uint32(fields[2])}
}
