package conformance

import (
	"context"
	"iter"
	"slices"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// maxIDs is the most ids that ListEvents takes.
const maxIDs = 1000

// History reads by ListEvents, page by page, all that was recorded of instances after a
// cursor, oldest first; an empty cursor means all that is kept. Of more than 1000
// instances, what is recorded meanwhile may be seen of some and not of others.
func History(ctx context.Context, client instancedv1.InstanceServiceClient, ids []string, after string) ([]*instancedv1.Event, error) {
	return HistoryBy(ids, after, func(req *instancedv1.ListEventsRequest) iter.Seq2[*instancedv1.ListEventsResponse, error] {
		return func(yield func(*instancedv1.ListEventsResponse, error) bool) {
			for {
				resp, err := client.ListEvents(ctx, req)
				if !yield(resp, err) || err != nil || resp.GetNextPageToken() == "" {
					return
				}
				req.PageToken = resp.GetNextPageToken()
			}
		}
	})
}

// HistoryBy is [History] for those who have another way to read all pages of a request,
// such as client.Client.Events.
func HistoryBy(ids []string, after string, pages func(*instancedv1.ListEventsRequest) iter.Seq2[*instancedv1.ListEventsResponse, error]) ([]*instancedv1.Event, error) {
	var events []*instancedv1.Event
	for some := range slices.Chunk(ids, maxIDs) {
		for page, err := range pages(&instancedv1.ListEventsRequest{InstanceIds: some, AfterCursor: after, PageSize: 1000}) {
			if err != nil {
				return nil, err
			}
			events = append(events, page.GetEvents()...)
		}
	}
	if len(ids) > maxIDs {
		slices.SortFunc(events, compare)
	}
	return events, nil
}
