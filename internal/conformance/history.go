package conformance

import (
	"context"
	"iter"
	"slices"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// maxIDs is the maximum number of ids in ListEvents.
const maxIDs = 1000

// History returns the history of instances after a cursor, oldest first, which it reads
// from ListEvents page by page. An empty cursor means the whole retained history. With more
// than 1000 instances, changes recorded meanwhile may be included for some of them only.
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

// HistoryBy is [History] with another way to read all pages of a request, such as
// client.Client.Events.
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
