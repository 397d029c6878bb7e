package instance

import (
	"cmp"
	"slices"
)

// Filter selects instances. An empty field matches everything; values within a
// field are alternatives; fields, and keys of Tags, must all match. All lists of IDs
// and texts are sorted.
type Filter struct {
	IDs               []ID
	States            []State
	Tags              map[string][]string
	Types             []string
	AvailabilityZones []string
	Regions           []string
	AccountIDs        []string
}

// Empty reports whether the filter matches every instance.
func (f *Filter) Empty() bool {
	return f == nil || len(f.IDs)+len(f.States)+len(f.Tags)+len(f.Types)+len(f.AvailabilityZones)+len(f.Regions)+len(f.AccountIDs) == 0
}

// Match reports whether the filter selects the instance. No filter selects nil. A key of
// Tags without values matches any value of the tag.
func (f *Filter) Match(i *Instance) bool {
	if i == nil {
		return false
	}
	if f.Empty() {
		return true
	}
	if !matches(f.IDs, i.ID) ||
		len(f.States) > 0 && !slices.Contains(f.States, i.State) ||
		!matches(f.Types, i.Type) ||
		!matches(f.AvailabilityZones, i.AvailabilityZone) ||
		!matches(f.Regions, i.Region) ||
		!matches(f.AccountIDs, i.AccountID) {
		return false
	}
	for key, values := range f.Tags {
		value, ok := i.Tags[key]
		if !ok || !matches(values, value) {
			return false
		}
	}
	return true
}

// matches reports whether sorted values contain a value; an empty list matches everything.
func matches[T cmp.Ordered](wanted []T, have T) bool {
	if len(wanted) == 0 {
		return true
	}
	_, found := slices.BinarySearch(wanted, have)
	return found
}
