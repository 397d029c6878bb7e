package lifecycle

import (
	"cmp"
	"context"
	"encoding/base64"
	"slices"
	"sort"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Describe returns a page of instances from the journal.
func (s *Service) Describe(ctx context.Context, caller Caller, req DescribeRequest) (DescribeResponse, error) {
	var c checker
	filter := c.filter("filter", req.Filter)
	size := c.pageSize(req.PageSize)
	scope := filterDigest(filter)
	if req.SelectKey != "" {
		scope = digest(scope, req.SelectKey)
	}
	after := c.pageToken(req.PageToken, scope)
	if err := cmp.Or(c.err(), s.mayRead(caller)); err != nil {
		return DescribeResponse{}, err
	}
	if req.MinCursor != "" {
		if _, err := s.resolve(ctx, "min_cursor", req.MinCursor); err != nil {
			return DescribeResponse{}, err
		}
	}
	if err := s.requireKnown(ctx, caller.Principal, filter.IDs); err != nil {
		return DescribeResponse{}, err
	}
	// Read before the snapshot, so that it is never newer than that.
	response := DescribeResponse{LastReconciled: s.LastReconciled()}
	var snapshot journal.Snapshot
	if len(filter.IDs) > 0 {
		snapshot = s.journal.Lookup(filter.IDs)
	} else {
		snapshot = s.journal.Snapshot()
	}
	response.Cursor = s.journal.Cursor(snapshot.Position)
	records := snapshot.Records
	first := sort.Search(len(records), func(i int) bool { return string(records[i].Instance.ID) > after })
	bytes := 0
	for _, r := range records[first:] {
		if !filter.Match(r.Instance) || req.Select != nil && !req.Select(r.Instance) {
			continue
		}
		if len(response.Instances) > 0 && (len(response.Instances) == size || bytes+approximateSize(r.Instance) > MaxPageBytes) {
			response.NextPageToken = newPageToken(scope, string(response.Instances[len(response.Instances)-1].ID))
			break
		}
		response.Instances = append(response.Instances, r.Instance)
		bytes += approximateSize(r.Instance)
	}
	return response, nil
}

// requireKnown rejects ids that neither the journal nor the backend knows.
func (s *Service) requireKnown(ctx context.Context, principal string, ids []instance.ID) error {
	if err := s.observer.EnsureKnown(ctx, principal, ids); err != nil {
		return err
	}
	var missing []instance.ID
	for _, id := range ids {
		if _, found := s.journal.Get(id); found {
			continue
		}
		if err := s.observer.Unreadable(id); err != nil {
			return err
		}
		missing = append(missing, id)
	}
	if len(missing) > 0 {
		return instance.NotFound(missing...)
	}
	return nil
}

// resolve returns the position of a cursor. The error names the field of an unreadable one.
func (s *Service) resolve(ctx context.Context, field, cursor string) (journal.Position, error) {
	position, err := s.journal.Resolve(ctx, cursor)
	if e := instance.AsError(err); err != nil && e.Kind == instance.KindInvalid {
		named := *e
		named.Violations = []instance.Violation{{Field: field, Description: e.Message}}
		named.Message = field + ": " + e.Message
		return journal.Position{}, &named
	}
	return position, err
}

// approximateSize is about how many bytes an instance takes in a response; it is never far
// too low.
func approximateSize(i *instance.Instance) int {
	size := 320 + len(i.AvailabilityZone) + len(i.Type) + len(i.StateTransitionReason) +
		len(i.ImageID) + len(i.PrivateDNSName) + len(i.PublicDNSName)
	if i.StateReason != nil {
		size += len(i.StateReason.Code) + len(i.StateReason.Message)
	}
	for k, v := range i.Tags {
		size += len(k) + len(v) + 8
	}
	return size
}

// A page token is the digest of what it is bound to, and the last item that was returned. It
// is not secret, and has no position of the log.
const digestLength = 32

func newPageToken(scope, last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(scope + last))
}

// pageToken returns the last item of the page before, from a page token of the scope; "" for
// the first page.
func (c *checker) pageToken(token, scope string) (last string) {
	if token == "" || len(c.violations) > 0 {
		return ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	switch {
	case err != nil || len(raw) <= digestLength:
		c.add("page_token", "is not a page token: want the next_page_token of the page before, as it was")
	case string(raw[:digestLength]) != scope:
		c.add("page_token", "belongs to another selection: want the one with which the first page was asked for")
	default:
		return string(raw[digestLength:])
	}
	return ""
}

// filterDigest identifies a filter, whatever the order of its values.
func filterDigest(f *instance.Filter) string {
	if f == nil {
		return ""
	}
	var states []string
	for _, s := range f.States {
		states = append(states, s.String())
	}
	var tags []string
	for key, values := range f.Tags {
		tags = append(tags, digest(append([]string{key}, sorted(values)...)...))
	}
	parts := make([]string, 0, 7)
	for _, list := range [][]string{instance.Strings(f.IDs), states, tags, f.Types, f.AvailabilityZones, f.Regions, f.AccountIDs} {
		parts = append(parts, digest(sorted(list)...))
	}
	return digest(parts...)
}

func sorted(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
