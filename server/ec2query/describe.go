package ec2query

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Limits of pages. A request without a size gets pages of the maximum size. Clients of older
// versions do not support pages, or do not expect them unless they ask for them, so they get
// up to maxOldPage instances in one.
const (
	minPageSize = 5
	maxPageSize = lifecycle.MaxPageSize
	maxOldPage  = 10_000
)

// page is the requested part of a selection.
type page struct {
	size  int
	token string
	// asked is whether the request mentions pages.
	asked bool
}

// page reads the requested page, in the protocol version of the caller.
func (c *call) page(ids []string) page {
	p := c.args.page(ids)
	if !p.asked && c.version != version {
		p.size = maxOldPage
	}
	return p
}

// page reads MaxResults and NextToken. They exclude a list of ids.
func (a args) page(ids []string) page {
	p := page{size: maxPageSize, token: a.text("NextToken"), asked: a.has("MaxResults") || a.has("NextToken")}
	size := a.number("MaxResults")
	switch {
	case size == nil:
	case len(ids) > 0:
		a.refuse(errInvalid(codeInvalidCombination, "The parameter instancesSet cannot be used with the parameter maxResults"))
	case *size < minPageSize:
		a.refuse(errInvalid(codeInvalidValue, "Value ( %d ) for parameter maxResults is invalid. Expecting a value greater than %d.", *size, minPageSize))
	case *size > maxPageSize:
		a.refuse(errInvalid(codeInvalidValue, "Value ( %d ) for parameter maxResults is invalid. Expecting a value less than %d.", *size, maxPageSize))
	default:
		p.size = *size
	}
	return p
}

// selection is what a Describe request selects.
type selection struct {
	ids    []string
	filter *filter
	page   page
	// seen maps a recorded instance to what this read sees of it, nil if it is not visible
	// yet; seen is nil if all look as they are recorded.
	seen func(*instance.Instance) *instance.Instance
}

// read lets the simulator admit a read, and ends a dry run. With other backends, reads are
// served from the journal alone.
func (s *Server) read(ctx context.Context, c *call, sel *selection, dryRun bool) error {
	if s.simulator != nil {
		read := instance.Read{Action: instance.Verb(c.action), Filtered: len(sel.filter.terms) > 0 || sel.page.asked}
		for _, name := range sel.ids {
			id, err := instance.ParseID(name)
			if err != nil {
				return err
			}
			read.IDs = append(read.IDs, id)
		}
		slices.Sort(read.IDs)
		read.IDs = slices.Compact(read.IDs)
		var err error
		if sel.seen, err = s.simulator.Read(ctx, read); err != nil {
			return err
		}
	}
	if dryRun {
		return errDryRun()
	}
	return nil
}

// instances returns a page of instances, and the token of the next one.
func (s *Server) instances(ctx context.Context, c *call, sel selection) ([]*instance.Instance, string, error) {
	looks := make(map[instance.ID]*instance.Instance)
	var hidden []instance.ID
	selected := func(i *instance.Instance) bool {
		if sel.seen == nil {
			return sel.filter.match(i)
		}
		look := sel.seen(i)
		if look == nil {
			hidden = append(hidden, i.ID)
			return false
		}
		looks[i.ID] = look
		return sel.filter.match(look)
	}
	req := lifecycle.DescribeRequest{
		Filter:    lifecycle.Filter{InstanceIDs: sel.ids},
		Select:    func(i *instance.Instance) bool { return ctx.Err() == nil && selected(i) },
		SelectKey: sel.filter.key(),
		PageToken: sel.page.token,
	}
	var found []*instance.Instance
	// The service layer bounds its pages in bytes, too.
	for {
		req.PageSize = min(sel.page.size-len(found), lifecycle.MaxPageSize)
		response, err := s.lifecycle.Describe(ctx, c.caller, req)
		if err := cmp.Or(err, ctx.Err(), sel.filter.err()); err != nil {
			return nil, "", badToken(err)
		}
		if len(sel.ids) > 0 && len(hidden) > 0 {
			return nil, "", instance.NotFound(hidden...)
		}
		for _, i := range response.Instances {
			found = append(found, cmp.Or(looks[i.ID], i))
		}
		if response.NextPageToken == "" || len(found) >= sel.page.size {
			return found, response.NextPageToken, nil
		}
		req.PageToken = response.NextPageToken
	}
}

// badToken gives an error about a page token EC2's code for it.
func badToken(err error) error {
	e, ok := errors.AsType[*instance.Error](err)
	if ok && len(e.Violations) > 0 && e.Violations[0].Field == "page_token" {
		return errToken(strings.ReplaceAll(e.Violations[0].Description, "next_page_token", "NextToken"))
	}
	return err
}

// errToken returns the error for a malformed page token.
func errToken(wrong string) error { return errInvalid(codeInvalidPage, "The NextToken %s", wrong) }

type reservationItem struct {
	ID        string             `xml:"reservationId"`
	OwnerID   string             `xml:"ownerId"`
	Groups    list[struct{}]     `xml:"groupSet"`
	Instances list[instanceItem] `xml:"instancesSet"`
}

type describeInstancesReply struct {
	head
	Reservations list[*reservationItem] `xml:"reservationSet"`
	NextToken    string                 `xml:"nextToken,omitempty"`
}

func (s *Server) describeInstances(ctx context.Context, c *call) (reply, error) {
	sel := selection{ids: c.args.instanceIDs()}
	c.ids = len(sel.ids)
	sel.page = c.page(sel.ids)
	sel.filter = c.args.filter(instanceFilters)
	c.args.ignore("IncludeManagedResources")
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if err := s.read(ctx, c, &sel, dryRun); err != nil {
		return nil, err
	}
	instances, next, err := s.instances(ctx, c, sel)
	if err != nil {
		return nil, err
	}
	return &describeInstancesReply{Reservations: list[*reservationItem]{reservations(instances)}, NextToken: next}, nil
}

// reservations groups instances by their launches.
func reservations(instances []*instance.Instance) []*reservationItem {
	byID := make(map[string]*reservationItem)
	var items []*reservationItem
	for _, i := range instances {
		id := reservationID(i)
		r := byID[id]
		if r == nil {
			r = &reservationItem{ID: id, OwnerID: i.AccountID}
			byID[id] = r
			items = append(items, r)
		}
		r.Instances.Items = append(r.Instances.Items, instanceOf(i))
	}
	return items
}

// reservationID returns the reservation of an instance's launch, or one of its own if the
// launch is unknown.
func reservationID(i *instance.Instance) string {
	if l := launchedOf(i); l.ReservationID != "" {
		return l.ReservationID
	}
	return "r-" + string(i.ID[2:])
}

// launchedOf returns what is known about the launch of an instance.
func launchedOf(i *instance.Instance) instance.Launched {
	if i.Simulator == nil || i.Simulator.Launched == nil {
		return instance.Launched{}
	}
	return *i.Simulator.Launched
}

// The possible statuses. Source: EC2 API Reference, SummaryStatus.
const (
	statusOK            = "ok"
	statusInitializing  = "initializing"
	statusNotApplicable = "not-applicable"
	statusInsufficient  = "insufficient-data"
)

// statusOf returns the status of both checks of an instance, and of its volumes. Instances of
// the simulator pass them a while after their launch; for others the status is unknown.
func (s *Server) statusOf(i *instance.Instance, now time.Time) string {
	switch {
	case i.State != instance.StateRunning:
		return statusNotApplicable
	case s.simulator == nil:
		return statusInsufficient
	case now.Before(i.LaunchTime.Add(s.simulator.StatusDelay())):
		return statusInitializing
	}
	return statusOK
}

// reachabilityOf returns the value of the only detail of a status.
func reachabilityOf(status string) string {
	if status == statusOK {
		return "passed"
	}
	return status
}

type statusDetail struct {
	Name   string `xml:"name"`
	Status string `xml:"status"`
}

type statusSummary struct {
	Status  string              `xml:"status"`
	Details *list[statusDetail] `xml:"details"`
}

func summaryOf(status string) statusSummary {
	s := statusSummary{Status: status}
	if status != statusNotApplicable {
		s.Details = &list[statusDetail]{[]statusDetail{{"reachability", reachabilityOf(status)}}}
	}
	return s
}

type statusItem struct {
	ID               instance.ID    `xml:"instanceId"`
	AvailabilityZone string         `xml:"availabilityZone"`
	Events           list[struct{}] `xml:"eventsSet"`
	State            stateItem      `xml:"instanceState"`
	System           statusSummary  `xml:"systemStatus"`
	Instance         statusSummary  `xml:"instanceStatus"`
	Volumes          statusSummary  `xml:"attachedEbsStatus"`
}

type describeStatusReply struct {
	head
	Statuses  list[statusItem] `xml:"instanceStatusSet"`
	NextToken string           `xml:"nextToken,omitempty"`
}

// maxStatusIDs is EC2's own limit.
const maxStatusIDs = 100

func (s *Server) describeInstanceStatus(ctx context.Context, c *call) (reply, error) {
	sel := selection{ids: c.args.instanceIDs()}
	c.ids = len(sel.ids)
	if len(sel.ids) > maxStatusIDs {
		c.args.refuse(errInvalid("InvalidRequest", "%[1]d exceeds the maximum number of instance IDs that can be specificied (%[2]d). "+
			"Please specify fewer than %[2]d instance IDs.", len(sel.ids), maxStatusIDs))
	}
	now := time.Now()
	sel.page = c.page(sel.ids)
	sel.filter = c.args.filter(s.statusFilters(now))
	sel.filter.runningOnly = !c.args.on("IncludeAllInstances")
	c.args.ignore("IncludeManagedResources")
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if err := s.read(ctx, c, &sel, dryRun); err != nil {
		return nil, err
	}
	instances, next, err := s.instances(ctx, c, sel)
	if err != nil {
		return nil, err
	}
	answer := &describeStatusReply{NextToken: next}
	for _, i := range instances {
		summary := summaryOf(s.statusOf(i, now))
		answer.Statuses.Items = append(answer.Statuses.Items, statusItem{
			ID: i.ID, AvailabilityZone: i.AvailabilityZone, State: stateOf(i.State),
			System: summary, Instance: summary, Volumes: summary,
		})
	}
	return answer, nil
}
