package ec2

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/backend/backendtest"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// simulate returns a simulator, closed when the test ends.
func simulate(t testing.TB, config sim.Config) *sim.Backend {
	t.Helper()
	config.Options.FilteredByID = true // all that is described here is described by filter
	s := sim.New(config)
	t.Cleanup(s.Close)
	if err := s.Restore(nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// simulated speaks EC2's protocol for a simulator, without a service in between.
type simulated struct{ *sim.Backend }

func (s simulated) answer(ctx context.Context, c call) (reply, error) {
	if c.action == "DescribeInstances" {
		return s.describe(ctx, c)
	}
	flag := func(name string) bool { return c.form.Get(name) == "true" }
	result, err := s.Execute(ctx, instance.Command{
		Verb: instance.Verb(c.action), IDs: c.ids, DryRun: flag("DryRun"), AdditionalInfo: c.form.Get("AdditionalInfo"),
		Hibernate: flag("Hibernate"), Force: flag("Force"), SkipOSShutdown: flag("SkipOsShutdown"), Principal: "service",
	})
	switch {
	case err != nil:
		return refusalOf(err)
	case c.action == "RebootInstances":
		return reply{200, document("<RebootInstancesResponse><requestId>r-1</requestId><return>true</return></RebootInstancesResponse>")}, nil
	}
	return changed(c.action, result.Changes), nil
}

// refusalOf is how EC2 tells of an error of the simulator.
func refusalOf(err error) (reply, error) {
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Code == "" {
		return reply{}, errLost
	}
	status := 400
	switch e.Code {
	case instance.CodeUnauthorized:
		status = 403
	case instance.CodeDryRun:
		status = 412
	case instance.CodeInsufficientCapacity, instance.CodeInternalError:
		status = 500
	case instance.CodeRequestLimitExceeded, instance.CodeServiceUnavailable:
		status = 503
	}
	return refusal(status, e.Code, e.Message), nil
}

func (s simulated) describe(ctx context.Context, c call) (reply, error) {
	query := instance.DescribeQuery{IDs: c.ids, All: len(c.ids) == 0, PageToken: c.form.Get("NextToken")}
	query.PageSize, _ = strconv.Atoi(c.form.Get("MaxResults"))
	if len(c.ids) > maxFilterValues {
		return refusal(400, "FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200"), nil
	}
	p, err := s.Describe(ctx, query)
	if err != nil {
		return refusalOf(err)
	}
	for n := 1; c.form.Has("Filter." + strconv.Itoa(n) + ".Name"); n++ {
		name, values := c.form.Get("Filter."+strconv.Itoa(n)+".Name"), filterValues(c.form, n)
		key, isTag := strings.CutPrefix(name, "tag:")
		p.Instances = slices.DeleteFunc(p.Instances, func(i *instance.Instance) bool {
			switch value, has := i.Tags[key]; {
			case isTag:
				return !has || !slices.Contains(values, value)
			case name == "tag-key":
				_, has = i.Tags[values[0]]
				return !has
			}
			return false
		})
	}
	return described(p.Instances, p.NextPageToken), nil
}

func TestTheBackendKeepsTheContract(t *testing.T) {
	// Fast, but not so fast that transitional states are missed.
	config := sim.Config{Speed: 500, Throttle: true, Fleet: []sim.Spec{
		{Count: backendtest.Needed},
		{Count: backendtest.Needed, AvailabilityZone: "b"},
	}}
	backendtest.Run(t, func(t *testing.T) lifecycle.Backend {
		return connect(t, &endpoint{answer: simulated{simulate(t, config)}.answer})
	})
}
