package codec

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/instanced/instanced/internal/instance"
)

// Fields is a set of fields of a stored Instance: bit n stands for number n.
type Fields uint64

func (f Fields) has(number protowire.Number) bool { return f&(1<<number) != 0 }

// table lists the fields of an instance, in the order in which they are written. It is the
// only place in this package that names them: encoding, decoding, Diff, Patch and Texts all
// go through it. The numbers are the field numbers of Instance in
// instanced.storage.v1.
var table = [...]field{
	textField(1, func(i *instance.Instance) *instance.ID { return &i.ID }),
	textField(2, func(i *instance.Instance) *string { return &i.AccountID }),
	textField(3, func(i *instance.Instance) *string { return &i.Region }),
	textField(4, func(i *instance.Instance) *string { return &i.AvailabilityZone }),
	textField(5, func(i *instance.Instance) *string { return &i.Type }),
	numberField(6, func(i *instance.Instance) *instance.State { return &i.State }),
	messageField(7, func(i *instance.Instance) **instance.StateReason { return &i.StateReason }, appendReason, readReason),
	textField(8, func(i *instance.Instance) *string { return &i.StateTransitionReason }),
	timeField(9, func(i *instance.Instance) *time.Time { return &i.LaunchTime }),
	textField(10, func(i *instance.Instance) *string { return &i.PrivateIPAddress }),
	textField(11, func(i *instance.Instance) *string { return &i.PublicIPAddress }),
	textField(12, func(i *instance.Instance) *string { return &i.Tenancy }),
	textField(13, func(i *instance.Instance) *string { return &i.RootDeviceType }),
	textField(14, func(i *instance.Instance) *string { return &i.Lifecycle }),
	tagsField(15),
	messageField(16, func(i *instance.Instance) **instance.SimulatorAttributes { return &i.Simulator }, appendSimulator, readSimulator),
	imageIDField(imageField),
	numberField(18, func(i *instance.Instance) *int32 { return &i.AMILaunchIndex }),
	textField(privateNameField, func(i *instance.Instance) *string { return &i.PrivateDNSName }),
	textField(publicNameField, func(i *instance.Instance) *string { return &i.PublicDNSName }),
}

// Some fields have a short form, which is written after all others.
const (
	imageField        = 17
	privateNameField  = 19
	publicNameField   = 20
	derivedNamesField = 21 // which host names follow from the addresses: bit 0 the private one, bit 1 the public one
	imageDigitsField  = 22 // the digits of an image id of the usual form
)

// field is an entry of the table.
type field struct {
	number protowire.Number
	equal  func(a, b *instance.Instance) bool
	copy   func(to, from *instance.Instance)
	// append writes nothing for a zero value.
	append func(b []byte, number protowire.Number, i *instance.Instance) []byte
	read   func(m *message, i *instance.Instance)
	// text is where the field is if it is a string, else nil.
	text func(i *instance.Instance) *string
}

// byNumber finds the entry of a number, nil if there is none.
var byNumber = func() (index [64]*field) {
	for n := range table {
		index[table[n].number] = &table[n]
	}
	return index
}()

// comparableField makes an entry of a field whose values == tells apart.
func comparableField[T comparable](number protowire.Number, at func(*instance.Instance) *T) field {
	return field{
		number: number,
		equal:  func(a, b *instance.Instance) bool { return *at(a) == *at(b) },
		copy:   func(to, from *instance.Instance) { *at(to) = *at(from) },
	}
}

func textField[T ~string](number protowire.Number, at func(*instance.Instance) *T) field {
	f := comparableField(number, at)
	f.append = func(b []byte, n protowire.Number, i *instance.Instance) []byte {
		return appendString(b, n, string(*at(i)))
	}
	f.read = func(m *message, i *instance.Instance) { *at(i) = T(m.string()) }
	f.text, _ = any(at).(func(*instance.Instance) *string)
	return f
}

func numberField[T ~int32 | ~int64 | ~int | ~uint8](number protowire.Number, at func(*instance.Instance) *T) field {
	f := comparableField(number, at)
	f.append = func(b []byte, n protowire.Number, i *instance.Instance) []byte {
		return appendVarint(b, n, uint64(*at(i)))
	}
	f.read = func(m *message, i *instance.Instance) { *at(i) = T(m.scalar) }
	return f
}

func timeField(number protowire.Number, at func(*instance.Instance) *time.Time) field {
	f := comparableField(number, at)
	f.append = func(b []byte, n protowire.Number, i *instance.Instance) []byte { return appendTime(b, n, *at(i)) }
	f.read = func(m *message, i *instance.Instance) { *at(i) = Time(int64(m.scalar)) }
	return f
}

// messageField makes an entry of a nested message. Equal values behind different pointers are
// equal.
func messageField[T comparable](number protowire.Number, at func(*instance.Instance) **T,
	write func([]byte, protowire.Number, *T) []byte, read func(*message) *T,
) field {
	f := comparableField(number, at)
	f.equal = func(a, b *instance.Instance) bool {
		x, y := *at(a), *at(b)
		return x == y || x != nil && y != nil && *x == *y
	}
	f.append = func(b []byte, n protowire.Number, i *instance.Instance) []byte {
		if m := *at(i); m != nil {
			return write(b, n, m)
		}
		return b
	}
	f.read = func(m *message, i *instance.Instance) { *at(i) = nestedIn(m, read) }
	return f
}

func tagsField(number protowire.Number) field {
	return field{
		number: number,
		equal:  func(a, b *instance.Instance) bool { return maps.Equal(a.Tags, b.Tags) },
		copy:   func(to, from *instance.Instance) { to.Tags = from.Tags },
		append: func(b []byte, n protowire.Number, i *instance.Instance) []byte {
			for key, value := range i.Tags {
				var entry int
				b, entry = open(b, n)
				b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), key)
				b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), value)
				b = shut(b, entry)
			}
			return b
		},
		read: func(m *message, i *instance.Instance) {
			if i.Tags == nil {
				i.Tags = map[string]string{}
			}
			tag := nestedIn(m, readTag)
			i.Tags[tag.key] = tag.value
		},
	}
}

// imageIDField makes the entry of the image id, which appears in full only when it has no
// short form.
func imageIDField(number protowire.Number) field {
	f := textField(number, func(i *instance.Instance) *string { return &i.ImageID })
	f.append = func(b []byte, n protowire.Number, i *instance.Instance) []byte {
		other, _ := packImageID(i.ImageID)
		return appendString(b, n, other)
	}
	return f
}

// Diff returns the fields that have the same value in two instances.
func Diff(a, b *instance.Instance) (same Fields) {
	for n := range table {
		if f := &table[n]; f.equal(a, b) {
			same |= 1 << f.number
		}
	}
	return same
}

// Patch copies some fields from one instance to another. The two share what the fields point
// to, which is never modified.
func Patch(to, from *instance.Instance, fields Fields) {
	for n := range table {
		if f := &table[n]; fields.has(f.number) {
			f.copy(to, from)
		}
	}
}

// Texts returns where the strings of an instance are, except its id, appended to a slice.
func Texts(texts []*string, i *instance.Instance) []*string {
	for n := range table {
		if f := &table[n]; f.text != nil {
			texts = append(texts, f.text(i))
		}
	}
	return texts
}

// derivedNames returns the fields of the host names that follow from the addresses.
func derivedNames(i *instance.Instance) (names Fields) {
	if i.HasUsualPrivateDNSName() {
		names |= 1 << privateNameField
	}
	if i.HasUsualPublicDNSName() {
		names |= 1 << publicNameField
	}
	return names
}

// deriveNames sets the host names that were left out because they follow from the addresses.
func deriveNames(i *instance.Instance, names Fields) {
	if names.has(privateNameField) {
		i.PrivateDNSName = i.UsualPrivateDNSName()
	}
	if names.has(publicNameField) {
		i.PublicDNSName = i.UsualPublicDNSName()
	}
}

// imagePrefix begins the ids of all images since 2018; 16 digits follow.
const imagePrefix = "ami-0"

// packImageID returns the digits of an image id of the usual form, and any other id as it is.
func packImageID(id string) (other string, digits uint64) {
	hex, ok := strings.CutPrefix(id, imagePrefix)
	if !ok || len(hex) != 16 {
		return id, 0
	}
	for n := range len(hex) {
		digit := hexValue(hex[n])
		if digit < 0 {
			return id, 0
		}
		digits = digits<<4 | uint64(digit)
	}
	if digits == 0 {
		return id, 0
	}
	return "", digits
}

func unpackImageID(digits uint64) string { return fmt.Sprintf(imagePrefix+"%016x", digits) }
