package promises

import (
	"context"
	"slices"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// maxIDs is the most ids that ListEvents takes.
const maxIDs = 1000

// History reads by ListEvents, page by page, all that was recorded of instances after a
// cursor, oldest first; an empty cursor means all that is kept. Of more than 1000
// instances, what is recorded meanwhile may be seen of some and not of others.
func History(ctx context.Context, client instancedv1.InstanceServiceClient, ids []string, after string) ([]*instancedv1.Event, error) {
	var events []*instancedv1.Event
	for some := range slices.Chunk(ids, maxIDs) {
		req := &instancedv1.ListEventsRequest{InstanceIds: some, AfterCursor: after, PageSize: 1000}
		for {
			resp, err := client.ListEvents(ctx, req)
			if err != nil {
				return nil, err
			}
			events = append(events, resp.GetEvents()...)
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
	}
	if len(ids) > maxIDs {
		slices.SortFunc(events, compare)
	}
	return events, nil
}
