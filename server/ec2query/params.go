package ec2query

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/instanced/instanced/internal/instance"
)

// Limits of the parameters of a request.
const (
	maxParameters = 5000
	maxNameBytes  = 256
	// maxParts bounds the parts of a name, and with them the memory that a request takes.
	// No name of EC2's has more than six.
	maxParts = 10
	// maxIndex bounds the indices of lists, whose elements need not be consecutive.
	maxIndex = 99_999
)

// node is a parameter, a group of parameters, or both. Names are split at their dots:
// Filter.1.Value.2 is four nodes deep.
type node struct {
	value string
	set   bool
	used  bool
	// known is whether the action has read it or anything below it.
	known    bool
	children map[string]*node
}

// parameter is an unescaped name and value.
type parameter struct{ name, value string }

// form holds the parameters of a query or a body. They are parsed once, for both verifying the
// signature and carrying out the request.
type form []parameter

// parseForm reads parameters in the form of a URL's query.
func parseForm(text string) (form, error) {
	if count := strings.Count(text, "&") + 1; count > maxParameters {
		return nil, errInvalid("InvalidRequest", "The request has %d parameters; at most %d are allowed.", count, maxParameters)
	}
	if strings.Contains(text, ";") {
		// Some parsers treat it as a separator, others as an ordinary character.
		return nil, errInvalid("InvalidRequest", "The request is not well formed: want a semicolon as %%3B.")
	}
	var all form
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := unescape(rawName)
		if err != nil {
			return nil, err
		}
		value, err := unescape(rawValue)
		if err != nil {
			return nil, err
		}
		if len(name) > maxNameBytes {
			return nil, errInvalid("InvalidRequest", "The name of a parameter has %d bytes; at most %d are allowed.", len(name), maxNameBytes)
		}
		all = append(all, parameter{name, value})
	}
	return all, nil
}

// has reports whether there is a parameter of the name.
func (all form) has(name string) bool {
	return slices.ContainsFunc(all, func(p parameter) bool { return p.name == name })
}

// get returns the value of a parameter, empty if it is absent.
func (all form) get(name string) string {
	if n := slices.IndexFunc(all, func(p parameter) bool { return p.name == name }); n >= 0 {
		return all[n].value
	}
	return ""
}

// add adds parameters. A duplicate name is rejected, because it is unclear which is meant.
func (n *node) add(all form) error {
	for _, p := range all {
		if strings.Count(p.name, ".") >= maxParts {
			return errUnknown(p.name)
		}
		leaf := n.at(p.name)
		if leaf.set {
			return errInvalid("InvalidRequest", "The parameter %s is given more than once.", p.name)
		}
		leaf.value, leaf.set = p.value, true
	}
	return nil
}

func unescape(text string) (string, error) {
	plain, err := url.QueryUnescape(text)
	if err != nil || !utf8.ValidString(plain) {
		return "", errInvalid("InvalidRequest", "The request is not well formed: want names and values in UTF-8, escaped as in a URL.")
	}
	return plain, nil
}

// at returns the node with a name, and creates it if necessary.
func (n *node) at(name string) *node {
	for part := range strings.SplitSeq(name, ".") {
		child := n.children[part]
		if child == nil {
			child = &node{}
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			n.children[part] = child
		}
		n = child
	}
	return n
}

// use marks a node and all below it as known.
func (n *node) use() {
	n.used, n.known = true, true
	for _, child := range n.children {
		child.use()
	}
}

// unused returns the name of a parameter that the action did not read, the first in
// alphabetical order.
func (n *node) unused() (name string, found bool) {
	if n.set && !n.used {
		return "", true
	}
	for _, part := range slices.Sorted(maps.Keys(n.children)) {
		if rest, found := n.children[part].unused(); found {
			return "." + part + rest, true
		}
	}
	return "", false
}

// unknown is [node.unused] as EC2 names it: a parameter whose name begins with an
// unknown name is named by that alone, Resources.0 as Resources.
func (n *node) unknown() (name string, found bool) {
	if name, found = n.unused(); !found {
		return "", false
	}
	name = name[1:]
	if first, _, _ := strings.Cut(name, "."); !n.children[first].known {
		name = first
	}
	return name, true
}

// args is what an action reads its parameters from. The first error is kept for [args.err].
type args struct {
	node *node
	// path is the prefix of the names, such as "Filter.1."; empty at the top.
	path string
	bad  *error
	// read is called when all parameters have been read.
	read func()
}

func newArgs(root *node, read func()) args { return args{node: root, bad: new(error), read: read} }

// err returns the first error of the parameters that were read, or that a parameter is
// unknown. An unknown parameter is reported before a missing one, which it may be in another
// form. No parameter can be read after err.
func (a args) err() error {
	defer a.read()
	defer func() { a.node.children = nil }()
	if bad, ok := errors.AsType[*instance.Error](*a.bad); ok && bad.Code != instance.CodeMissingParameter {
		return bad
	}
	if name, found := a.node.unknown(); found {
		return errUnknown(name)
	}
	return *a.bad
}

func (a args) refuse(err error) {
	if *a.bad == nil {
		*a.bad = err
	}
}

// child returns the node with a name and marks it as known; nil if there is none.
func (a args) child(name string) *node {
	child := a.node.children[name]
	if child != nil {
		child.known = true
	}
	return child
}

func (a args) take(name string) (string, bool) {
	leaf := a.child(name)
	if leaf == nil || !leaf.set {
		return "", false
	}
	leaf.used = true
	return leaf.value, true
}

// has reports whether there is a parameter of the name, or one below it.
func (a args) has(name string) bool { return a.child(name) != nil }

// ignore marks parameters without effect, and all below them, as known.
func (a args) ignore(names ...string) {
	for _, name := range names {
		if child := a.node.children[name]; child != nil {
			child.use()
		}
	}
}

// forget is like [args.ignore] for parameters that matter for whether two requests are the
// same. It returns them as one string.
func (a args) forget(names ...string) string {
	a.ignore(names...)
	var text strings.Builder
	for _, name := range names {
		if child := a.node.children[name]; child != nil {
			child.print(&text, a.path+name)
		}
	}
	return text.String()
}

// print writes a node and all below it, in the order of the alphabet.
func (n *node) print(text *strings.Builder, name string) {
	if n.set {
		fmt.Fprintf(text, "%q=%q\n", name, n.value)
	}
	for _, part := range slices.Sorted(maps.Keys(n.children)) {
		n.children[part].print(text, name+"."+part)
	}
}

// text returns a parameter, empty if it is absent.
func (a args) text(name string) string {
	value, _ := a.take(name)
	return value
}

// required returns a parameter that must be there and not be empty.
func (a args) required(name string) string {
	value := a.text(name)
	if value == "" {
		a.refuse(errMissing(a.path + name))
	}
	return value
}

// flag returns a parameter that is true or false; nil if it is absent.
func (a args) flag(name string) *bool {
	value, ok := a.take(name)
	switch {
	case !ok:
		return nil
	case strings.EqualFold(value, "true"):
		return new(true)
	case strings.EqualFold(value, "false"):
		return new(false)
	}
	a.refuse(errInvalid(codeInvalidValue, "Invalid value '%s' for boolean parameter %s. Must be true or false.", clip(value), a.path+name))
	return nil
}

// on reports whether a parameter is present and true.
func (a args) on(name string) bool {
	flag := a.flag(name)
	return flag != nil && *flag
}

// number returns a whole number; nil if it is absent.
func (a args) number(name string) *int {
	value, ok := a.take(name)
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil {
		a.refuse(errInvalid(codeInvalidValue, "Invalid value '%s' for parameter %s. Must be a whole number.", clip(value), a.path+name))
		return nil
	}
	return new(int(n))
}

// indices returns the indices of a list in order. They start at 1, or at 0 with some clients,
// and may have gaps. Malformed numbers are left for [args.err] to report as unknown.
func (a args) indices(name string) []int {
	list := a.child(name)
	if list == nil {
		return nil
	}
	indices := make([]int, 0, len(list.children))
	for part := range list.children {
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i <= maxIndex && strconv.Itoa(i) == part {
			indices = append(indices, i)
		}
	}
	slices.Sort(indices)
	return indices
}

// list returns a list of strings, such as InstanceId.1, InstanceId.2. A list of one may have
// no index.
func (a args) list(name string) []string {
	var values []string
	if value, ok := a.take(name); ok {
		values = append(values, value)
	}
	for _, i := range a.indices(name) {
		if value, ok := (args{node: a.node.children[name], bad: a.bad}).take(strconv.Itoa(i)); ok {
			values = append(values, value)
		}
	}
	return values
}

// groups returns the elements of a list of groups, such as Filter.1, Filter.2.
func (a args) groups(name string) []args {
	var groups []args
	for _, i := range a.indices(name) {
		part := strconv.Itoa(i)
		groups = append(groups, args{node: a.node.children[name].children[part], path: fmt.Sprintf("%s%s.%s.", a.path, name, part), bad: a.bad})
	}
	return groups
}

// group returns the parameters below a name, such as Placement.
func (a args) group(name string) args {
	child := a.child(name)
	if child == nil {
		child = &node{}
	}
	return args{node: child, path: a.path + name + ".", bad: a.bad}
}

// tag is a key and a value; Value is nil if none was given.
type tag struct {
	Key   string
	Value *string
}

// tags returns a list of tags, whose keys are distinct.
func (a args) tags(name string) []tag {
	var tags []tag
	seen := make(map[string]bool)
	for _, g := range a.groups(name) {
		t := tag{Key: g.required("Key")}
		if value, ok := g.take("Value"); ok {
			t.Value = &value
		}
		if seen[t.Key] {
			a.refuse(errInvalid(codeInvalidValue, "Duplicate tag key '%s' specified.", clip(t.Key)))
		}
		seen[t.Key] = true
		tags = append(tags, t)
	}
	return tags
}

// tagMap returns tags as a map, without a value as an empty one.
func tagMap(tags []tag) map[string]string {
	out := make(map[string]string, len(tags))
	for _, t := range tags {
		out[t.Key] = ""
		if t.Value != nil {
			out[t.Key] = *t.Value
		}
	}
	return out
}

// clip shortens input of a caller that is quoted.
func clip(s string) string {
	const maxBytes = 128
	if len(s) <= maxBytes {
		return s
	}
	end := maxBytes
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// distinct returns a list without duplicates.
func (a args) distinct(name string) []string {
	seen := make(map[string]bool)
	return slices.DeleteFunc(a.list(name), func(value string) bool {
		again := seen[value]
		seen[value] = true
		return again
	})
}

// instanceIDs returns the ids that a command names, without duplicates.
func (a args) instanceIDs() []string {
	ids := a.distinct("InstanceId")
	switch {
	case len(ids) > maxIDs:
		a.refuse(errTooMany())
	case slices.Contains(ids, ""):
		a.refuse(errMissing("InstanceId"))
	}
	return ids
}

func errUnknown(name string) error {
	return errInvalid("UnknownParameter", "The parameter %s is not recognized", name)
}

func errMissing(name string) error {
	return errInvalid(instance.CodeMissingParameter, "The request must contain the parameter %s", name)
}

func errTooMany() error {
	return errInvalid(instance.CodeResourceCountExceeded, "You have exceeded the number of resources allowed in a single call of this type")
}
