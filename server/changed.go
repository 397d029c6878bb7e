package server

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// changedFields returns the names of the fields in which two images of an instance differ,
// for Event.changed_fields.
func changedFields(before, after *instancedv1.Instance) (names []string) {
	fields := after.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch a, b := before.ProtoReflect(), after.ProtoReflect(); {
		case field.IsMap():
			names = append(names, changedKeys(field, a.Get(field).Map(), b.Get(field).Map())...)
		case a.Has(field) != b.Has(field) || !a.Get(field).Equal(b.Get(field)):
			names = append(names, string(field.Name()))
		}
	}
	return names
}

// changedKeys returns the keys of the entries in which two maps differ.
func changedKeys(field protoreflect.FieldDescriptor, before, after protoreflect.Map) []string {
	changed := make(map[string]struct{})
	compare := func(with protoreflect.Map) func(protoreflect.MapKey, protoreflect.Value) bool {
		return func(key protoreflect.MapKey, value protoreflect.Value) bool {
			if !with.Has(key) || !with.Get(key).Equal(value) {
				changed[string(field.Name())+"."+key.String()] = struct{}{}
			}
			return true
		}
	}
	before.Range(compare(after))
	after.Range(compare(before))
	return slices.Sorted(maps.Keys(changed))
}
