package simulator

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// durationName is the message that may be written as people write durations.
const durationName protoreflect.FullName = "google.protobuf.Duration"

// normalized checks a tree of JSON values against a message, and returns it in the
// form that protojson reads. at is where the tree stands in the file.
func normalized(at string, tree any, message protoreflect.MessageDescriptor) (any, error) {
	object, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: is %s; want a mapping with the fields %s", orFile(at), kindOf(tree), fieldNames(message))
	}
	out := make(map[string]any, len(object))
	for _, key := range slices.Sorted(maps.Keys(object)) {
		field := message.Fields().ByTextName(key)
		if field == nil {
			field = message.Fields().ByJSONName(key)
		}
		if field == nil {
			return nil, fmt.Errorf("%s: there is no such field; want one of %s", join(at, key), fieldNames(message))
		}
		if _, twice := out[field.TextName()]; twice {
			return nil, fmt.Errorf("%s: stands twice, by two of its names", join(at, key))
		}
		value, err := normalizedField(join(at, key), object[key], field)
		if err != nil {
			return nil, err
		}
		out[field.TextName()] = value
	}
	return out, nil
}

func normalizedField(at string, value any, field protoreflect.FieldDescriptor) (any, error) {
	if value == nil {
		return nil, nil
	}
	switch {
	case field.IsMap():
		return normalizedMap(at, value)
	case field.IsList():
		list, ok := value.([]any)
		if !ok {
			return nil, fmt.Errorf("%s: is %s; want a list", at, kindOf(value))
		}
		out := make([]any, len(list))
		for i, element := range list {
			var err error
			if out[i], err = normalizedValue(at+"["+strconv.Itoa(i)+"]", element, field); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return normalizedValue(at, value, field)
}

func normalizedValue(at string, value any, field protoreflect.FieldDescriptor) (any, error) {
	switch {
	case field.Message() != nil && field.Message().FullName() == durationName:
		return normalizedDuration(at, value)
	case field.Message() != nil:
		return normalized(at, value, field.Message())
	case field.Enum() != nil:
		return normalizedEnum(at, value, field.Enum())
	case field.Kind() == protoreflect.StringKind:
		if _, ok := value.(string); !ok {
			return nil, fmt.Errorf("%s: is %s; want a text, in quotes if need be", at, kindOf(value))
		}
	}
	return value, nil
}

// normalizedMap checks a mapping of texts to texts, the only kind that there is.
func normalizedMap(at string, value any) (any, error) {
	object, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: is %s; want a mapping of texts", at, kindOf(value))
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if _, ok := object[key].(string); !ok {
			return nil, fmt.Errorf("%s: is %s; want a text, in quotes if need be", join(at, key), kindOf(object[key]))
		}
	}
	return object, nil
}

func normalizedDuration(at string, value any) (any, error) {
	text, _ := value.(string)
	d, err := time.ParseDuration(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %v is no duration; want one such as 500ms, 2s or 1m", at, value)
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 9, 64) + "s", nil
}

// normalizedEnum accepts the name of a value with and without what is common to all,
// in EC2's spelling too.
func normalizedEnum(at string, value any, enum protoreflect.EnumDescriptor) (any, error) {
	values := enum.Values()
	prefix := strings.TrimSuffix(string(values.Get(0).Name()), "UNSPECIFIED")
	text, _ := value.(string)
	name := strings.ToUpper(strings.ReplaceAll(text, "-", "_"))
	if !strings.HasPrefix(name, prefix) {
		name = prefix + name
	}
	if values.ByName(protoreflect.Name(name)) != nil {
		return name, nil
	}
	var names []string
	for i := 1; i < values.Len(); i++ {
		short := strings.TrimPrefix(string(values.Get(i).Name()), prefix)
		names = append(names, strings.ReplaceAll(strings.ToLower(short), "_", "-"))
	}
	return nil, fmt.Errorf("%s: %v is none of its values; want one of %s", at, value, strings.Join(names, ", "))
}

func fieldNames(message protoreflect.MessageDescriptor) string {
	fields := message.Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = fields.Get(i).TextName()
	}
	return strings.Join(names, ", ")
}

func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "empty"
	case string:
		return "a text"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	case []any:
		return "a list"
	}
	return "a mapping"
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

func orFile(at string) string {
	if at == "" {
		return "the file"
	}
	return at
}
