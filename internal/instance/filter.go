package instance

import "slices"

// Filter selects instances. An empty field matches everything; values within a
// field are alternatives; fields, and keys of Tags, must all match.
type Filter struct {
	// IDs are sorted.
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

// Match reports whether the filter selects the instance. No filter selects nil.
// A key of Tags without values asks for the key with whatever value.
func (f *Filter) Match(i *Instance) bool {
	if i == nil {
		return false
	}
	if f.Empty() {
		return true
	}
	for key, values := range f.Tags {
		value, ok := i.Tags[key]
		if !ok || !matches(values, value) {
			return false
		}
	}
	if len(f.IDs) > 0 {
		if _, found := slices.BinarySearch(f.IDs, i.ID); !found {
			return false
		}
	}
	return matches(f.States, i.State) &&
		matches(f.Types, i.Type) &&
		matches(f.AvailabilityZones, i.AvailabilityZone) &&
		matches(f.Regions, i.Region) &&
		matches(f.AccountIDs, i.AccountID)
}

func matches[T comparable](wanted []T, have T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, have)
}
