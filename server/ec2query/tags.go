package ec2query

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/instanced/instanced/internal/instance"
)

// tagged reads the resources of CreateTags and DeleteTags, which must be instances.
func (a args) tagged() []instance.ID {
	names := a.distinct("ResourceId")
	switch {
	case len(names) == 0:
		a.refuse(errMissing("resourceIdSet"))
	case len(names) > maxIDs:
		a.refuse(errTooMany())
	}
	var ids []instance.ID
	for _, name := range names {
		if !strings.HasPrefix(name, "i-") {
			a.refuse(errInvalid("InvalidID", "The ID '%s' is not valid", clip(name)))
		}
		ids = append(ids, a.id(name))
	}
	return ids
}

// id checks the id of an instance.
func (a args) id(name string) instance.ID {
	id, err := instance.ParseID(name)
	if err != nil {
		a.refuse(err)
	}
	return id
}

func (s *Server) createTags(ctx context.Context, c *call) (reply, error) {
	change := instance.Modification{IDs: c.args.tagged(), SetTags: tagMap(c.args.tags("Tag"))}
	if len(change.SetTags) == 0 {
		c.args.refuse(errMissing("Tag"))
	}
	return s.modifyTags(ctx, c, change)
}

// deleteTags removes tags: a key without a value removes the tag whatever its value is, and a
// request without keys removes all tags.
func (s *Server) deleteTags(ctx context.Context, c *call) (reply, error) {
	change := instance.Modification{IDs: c.args.tagged(), RemoveTagValues: make(map[string]string)}
	tags := c.args.tags("Tag")
	for _, t := range tags {
		if t.Value != nil {
			change.RemoveTagValues[t.Key] = *t.Value
		} else {
			change.RemoveTags = append(change.RemoveTags, t.Key)
		}
	}
	change.RemoveAllTags = len(tags) == 0
	return s.modifyTags(ctx, c, change)
}

func (s *Server) modifyTags(ctx context.Context, c *call, change instance.Modification) (reply, error) {
	c.ids = len(change.IDs)
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if dryRun {
		return nil, errDryRun()
	}
	if err := s.simulator.Modify(ctx, change); err != nil {
		return nil, err
	}
	return &returnReply{Return: true}, nil
}

type tagDescription struct {
	ResourceID   instance.ID `xml:"resourceId"`
	ResourceType string      `xml:"resourceType"`
	Key          string      `xml:"key"`
	Value        string      `xml:"value"`
}

type describeTagsReply struct {
	head
	Tags      list[tagDescription] `xml:"tagSet"`
	NextToken string               `xml:"nextToken,omitempty"`
}

// A tag is filtered as an instance with that tag only, so that the filters of instances work
// for tags.
var tagFilters = fields{
	"key":           instanceFilters["tag-key"],
	"resource-id":   instanceFilters["instance-id"],
	"resource-type": one(func(*instance.Instance) string { return "instance" }),
	"value":         instanceFilters["tag-value"],
}

func (s *Server) describeTags(ctx context.Context, c *call) (reply, error) {
	f := c.args.filter(tagFilters)
	p := c.page(nil)
	from, after, err := parseTagToken(f, p.token)
	if err != nil {
		c.args.refuse(err)
	}
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	walk := selection{filter: &filter{}, page: page{size: maxPageSize, token: from}}
	if err := s.read(ctx, c, &walk, dryRun); err != nil {
		return nil, err
	}
	answer := &describeTagsReply{}
	for {
		instances, next, err := s.instances(ctx, c, walk)
		if err != nil {
			return nil, err
		}
		for _, i := range instances {
			if i.ID < after.ResourceID {
				continue
			}
			for _, t := range tagsMatching(f, i) {
				if i.ID == after.ResourceID && t.Key <= after.Key {
					continue
				}
				if len(answer.Tags.Items) == p.size {
					answer.NextToken = newTagToken(f, walk.page.token, answer.Tags.Items[p.size-1])
					return answer, nil
				}
				answer.Tags.Items = append(answer.Tags.Items, t)
			}
		}
		if err := f.err(); err != nil {
			return nil, err
		}
		if next == "" {
			return answer, nil
		}
		walk.page.token = next
	}
}

// tagsMatching returns the tags of an instance that a filter selects, in the order of
// their keys.
func tagsMatching(f *filter, i *instance.Instance) []tagDescription {
	var found []tagDescription
	for _, key := range slices.Sorted(maps.Keys(i.Tags)) {
		alone := &instance.Instance{ID: i.ID, Tags: map[string]string{key: i.Tags[key]}}
		if f.match(alone) {
			found = append(found, tagDescription{ResourceID: i.ID, ResourceType: "instance", Key: key, Value: i.Tags[key]})
		}
	}
	return found
}

// A token of DescribeTags names the filter that it is bound to, and holds the tag that
// came last, and the token of the page of instances that this was found in.
func newTagToken(f *filter, from string, last tagDescription) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tagScope(f) + " " + from + " " + string(last.ResourceID) + " " + last.Key))
}

// tagScope names a filter.
func tagScope(f *filter) string {
	sum := sha256.Sum256([]byte(f.key()))
	return hex.EncodeToString(sum[:16])
}

// parseTagToken returns the token of the page of instances to go on with, and the tag
// after which.
func parseTagToken(f *filter, token string) (from string, after tagDescription, err error) {
	if token == "" {
		return "", tagDescription{}, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.SplitN(string(text), " ", 4)
	switch {
	case err != nil || len(parts) < 4:
		return "", tagDescription{}, errToken("is not a page token: want the NextToken of the page before, as it was")
	case parts[0] != tagScope(f):
		return "", tagDescription{}, errToken("belongs to another selection: want the one with which the first page was asked for")
	}
	return parts[1], tagDescription{ResourceID: instance.ID(parts[2]), Key: parts[3]}, nil
}
