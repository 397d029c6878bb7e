package ec2query

import (
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/instanced/instanced/internal/instance"
)

// Limits of filters. Sources: EC2 User Guide, "Filter your resources"; the number of values
// is from an error message of EC2.
const (
	maxFilters      = 50
	maxFilterValues = 200
	maxFilterLength = 255
)

// The budget of a request's filters, in steps: a step compares one value, or matches one
// character against a pattern.
const (
	maxFilterSteps = 20_000_000 // a fraction of a second
	// yieldInterval is after how many steps other goroutines get the processor.
	yieldInterval = 1 << 14
)

// field returns the values of an instance that a filter is compared with, of which one has to
// match.
type field func(*instance.Instance) []string

// fields are the filters of an action, by EC2's names.
type fields map[string]field

// one is a field with one value; empty means that the instance has none.
func one(value func(*instance.Instance) string) field {
	return func(i *instance.Instance) []string {
		if v := value(i); v != "" {
			return []string{v}
		}
		return nil
	}
}

// instanceFilters are the filters of DescribeInstances, one for everything known about an
// instance.
var instanceFilters = fields{
	"availability-zone":   one(func(i *instance.Instance) string { return i.AvailabilityZone }),
	"client-token":        one(func(i *instance.Instance) string { return launchedOf(i).ClientToken }),
	"image-id":            one(func(i *instance.Instance) string { return i.ImageID }),
	"instance-id":         one(func(i *instance.Instance) string { return string(i.ID) }),
	"instance-lifecycle":  one(func(i *instance.Instance) string { return i.Lifecycle }),
	"instance-state-code": one(func(i *instance.Instance) string { return strconv.Itoa(int(i.State.Code())) }),
	"instance-state-name": one(func(i *instance.Instance) string { return i.State.String() }),
	"instance-type":       one(func(i *instance.Instance) string { return i.Type }),
	"ip-address":          one(func(i *instance.Instance) string { return i.PublicIPAddress }),
	"launch-time":         one(func(i *instance.Instance) string { return timestamp(i.LaunchTime) }),
	"owner-id":            one(func(i *instance.Instance) string { return i.AccountID }),
	"private-ip-address":  one(func(i *instance.Instance) string { return i.PrivateIPAddress }),
	"reason":              one(func(i *instance.Instance) string { return i.StateTransitionReason }),
	"reservation-id":      one(reservationID),
	"root-device-type":    one(func(i *instance.Instance) string { return i.RootDeviceType }),
	"tenancy":             one(func(i *instance.Instance) string { return i.Tenancy }),
	"state-reason-code": one(func(i *instance.Instance) string {
		if i.StateReason == nil {
			return ""
		}
		return i.StateReason.Code
	}),
	"state-reason-message": one(func(i *instance.Instance) string {
		if i.StateReason == nil {
			return ""
		}
		return i.StateReason.Message
	}),
	"dns-name":         one(publicNameOf),
	"private-dns-name": one(privateNameOf),
	"launch-index":     one(func(i *instance.Instance) string { return strconv.Itoa(int(i.AMILaunchIndex)) }),
	"hibernation-options.configured": one(func(i *instance.Instance) string {
		return strconv.FormatBool(i.Simulator != nil && i.Simulator.HibernationConfigured)
	}),
	// EC2 supports tag-value, though it dropped it from its documentation.
	"tag-value": func(i *instance.Instance) []string { return slices.Collect(maps.Values(i.Tags)) },
	"tag-key": func(i *instance.Instance) []string {
		keys := make([]string, 0, len(i.Tags))
		for key := range i.Tags {
			keys = append(keys, key)
		}
		return keys
	},
}

// statusFilters returns the filters of DescribeInstanceStatus.
func (s *Server) statusFilters(now time.Time) fields {
	status := one(func(i *instance.Instance) string { return s.statusOf(i, now) })
	reachability := one(func(i *instance.Instance) string { return reachabilityOf(s.statusOf(i, now)) })
	return fields{
		"availability-zone":            instanceFilters["availability-zone"],
		"instance-state-code":          instanceFilters["instance-state-code"],
		"instance-state-name":          instanceFilters["instance-state-name"],
		"attached-ebs-status.status":   status,
		"instance-status.status":       status,
		"instance-status.reachability": reachability,
		"system-status.status":         status,
		"system-status.reachability":   reachability,
	}
}

// filter selects the instances that match all its terms.
type filter struct {
	terms []term
	// runningOnly excludes instances in other states.
	runningOnly bool
	// text is what the filter was made from.
	text []string
	// steps is how many steps were taken so far. When there are too many, the filter selects
	// nothing more.
	steps int
}

// term is one filter of a request: one of its values has to match.
type term struct {
	field   field
	exactly map[string]struct{}
	like    []*glob
}

// filter reads the filters of a request.
func (a args) filter(known fields) *filter {
	f := &filter{}
	// Filters after a rejected one are not read, but not unknown either.
	refuse := func(err error) *filter {
		a.refuse(err)
		a.ignore("Filter")
		return f
	}
	groups := a.groups("Filter")
	if len(groups) > maxFilters {
		return refuse(errInvalid("FilterLimitExceeded", "The maximum number of filters specified on a single call is %d", maxFilters))
	}
	count := 0
	for _, g := range groups {
		name, values := g.required("Name"), g.list("Value")
		if count += len(values); count > maxFilterValues {
			return refuse(errInvalid("FilterLimitExceeded", "The maximum number of filter values specified on a single call is %d", maxFilterValues))
		}
		if len(values) == 0 {
			a.refuse(errMissing(g.path + "Value.1"))
		}
		compare := known.named(name)
		if compare == nil {
			return refuse(errInvalid(codeInvalidValue, "The filter '%s' is invalid", clip(name)))
		}
		t := term{field: compare, exactly: make(map[string]struct{})}
		for _, v := range values {
			if utf8.RuneCountInString(v) > maxFilterLength {
				return refuse(errInvalid(codeInvalidValue, "A value of the filter '%s' has more than %d characters.", clip(name), maxFilterLength))
			}
			t.add(v)
		}
		f.terms = append(f.terms, t)
		slices.Sort(values)
		f.text = append(f.text, strconv.Quote(name), strconv.Quote(strings.Join(values, "\x00")))
	}
	return f
}

// named returns the field with a name; tag:KEY is the tag KEY.
func (f fields) named(name string) field {
	if key, ok := strings.CutPrefix(name, "tag:"); ok && key != "" {
		return func(i *instance.Instance) []string {
			if value, ok := i.Tags[key]; ok {
				return []string{value}
			}
			return nil
		}
	}
	return f[name]
}

// add adds a value.
func (t *term) add(value string) {
	pattern, text := parseGlob(value)
	if pattern == nil {
		t.exactly[text] = struct{}{}
		return
	}
	t.like = append(t.like, pattern)
}

// matchTerm reports whether an instance has one of the values of a term.
func (f *filter) matchTerm(t *term, i *instance.Instance) bool {
	for _, have := range t.field(i) {
		f.spend(1)
		if _, ok := t.exactly[have]; ok {
			return true
		}
		for _, like := range t.like {
			matches, steps := like.match(have)
			f.spend(steps)
			if matches {
				return true
			}
			if f.over() {
				return false
			}
		}
	}
	return false
}

// match reports whether the filter selects an instance.
func (f *filter) match(i *instance.Instance) bool {
	if f.over() || f.runningOnly && i.State != instance.StateRunning {
		return false
	}
	for n := range f.terms {
		if !f.matchTerm(&f.terms[n], i) {
			return false
		}
	}
	return true
}

// spend counts steps, and yields the processor occasionally.
func (f *filter) spend(steps int) {
	if (f.steps+steps)/yieldInterval > f.steps/yieldInterval {
		runtime.Gosched()
	}
	f.steps += steps
}

func (f *filter) over() bool { return f.steps > maxFilterSteps }

// err returns an error if the budget was used up before all instances were compared.
func (f *filter) err() error {
	if !f.over() {
		return nil
	}
	return errInvalid("FilterLimitExceeded", "The filters take too many comparisons with the instances that there are. "+
		"Use fewer values with wildcards, or name instances, tags or states without wildcards.")
}

// key identifies the filter in page tokens.
func (f *filter) key() string {
	if f.runningOnly {
		return strings.Join(append(f.text, "running"), " ")
	}
	return strings.Join(append(f.text, "all"), " ")
}
