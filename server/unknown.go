package server

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/instanced/instanced/internal/instance"
)

// isCommand reports whether a method may change anything. All methods not known to be
// read-only are commands, including methods of later versions.
func isCommand(method string) bool { return strings.HasPrefix(method, "/instanced.") && !reads[method] }

// maxUnknown bounds how many unknown fields are counted.
const maxUnknown = 100

// refuseUnknown rejects a command with unknown fields, nested ones included: one of them may
// be a condition without which the caller does not want the command.
func refuseUnknown(request proto.Message) error {
	var found unknownFields
	found.add("", request.ProtoReflect())
	if len(found) == 0 {
		return nil
	}
	e := &instance.Error{Kind: instance.KindInvalid, Reason: instance.ReasonUnknownField}
	for _, field := range found {
		e.Violations = append(e.Violations, instance.Violation{
			Field:       field,
			Description: "this server does not know the field with this number: want a newer server, or a request without it",
			Reason:      e.Reason,
		})
	}
	e.Message = fmt.Sprintf("the request has a field that this server does not know (%s); a command is not carried out without what it may mean", found[0])
	if len(found) > 1 {
		e.Message = fmt.Sprintf("the request has %d fields that this server does not know (%s, …); a command is not carried out without what they may mean", len(found), found[0])
	}
	return e
}

// unknownFields are paths of fields, of which the last element is a number: "12", or
// "instances[3].12".
type unknownFields []string

// add adds the unknown fields of a message and of the messages in it.
func (u *unknownFields) add(path string, m protoreflect.Message) {
	for wire := m.GetUnknown(); len(wire) > 0 && len(*u) < maxUnknown; {
		number, _, n := protowire.ConsumeField(wire)
		if n < 0 {
			break
		}
		wire = wire[n:]
		if field := path + strconv.Itoa(int(number)); !slices.Contains(*u, field) {
			*u = append(*u, field)
		}
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Message() == nil || !m.Has(field) {
			continue
		}
		name := path + field.TextName()
		switch value := m.Get(field); {
		case field.IsMap():
			if field.MapValue().Message() == nil {
				continue
			}
			value.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
				u.add(fmt.Sprintf("%s[%q].", name, key.String()), v.Message())
				return len(*u) < maxUnknown
			})
		case field.IsList():
			for at := 0; at < value.List().Len() && len(*u) < maxUnknown; at++ {
				u.add(name+"["+strconv.Itoa(at)+"].", value.List().Get(at).Message())
			}
		default:
			u.add(name+".", value.Message())
		}
	}
}
