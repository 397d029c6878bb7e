package ec2query

import (
	"errors"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func parsed(t testing.TB, text string) args {
	t.Helper()
	root, err := tree(text)
	if err != nil {
		t.Fatal(err)
	}
	return newArgs(root, func() {})
}

// tree reads a form.
func tree(text string) (*node, error) {
	root := &node{}
	f, err := parseForm(text)
	if err == nil {
		err = root.add(f)
	}
	return root, err
}

// wantCode checks that an error is EC2's, and what it says.
func wantCode(t testing.TB, err error, code, message string) {
	t.Helper()
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("error %v, want %s", err, code)
	}
	if !strings.Contains(e.Message, message) {
		t.Errorf("message %q, want %q", e.Message, message)
	}
}

func TestParametersAreReadAsTheProtocolWritesThem(t *testing.T) {
	for _, test := range []struct {
		name, form string
		read       func(args) any
		want       any
	}{
		{"a text", "A=b", func(a args) any { return a.text("A") }, "b"},
		{"a text that is escaped", "A=%C3%A4+%26%3D%0A", func(a args) any { return a.text("A") }, "ä &=\n"},
		{"a text without a sign of equality", "A", func(a args) any { return a.text("A") }, ""},
		{"a text that is not there", "", func(a args) any { return a.text("A") }, ""},
		{"a list in its order", "A.2=b&A.10=c&A.1=a", func(a args) any { return a.list("A") }, []string{"a", "b", "c"}},
		{"a list from zero", "A.1=b&A.0=a", func(a args) any { return a.list("A") }, []string{"a", "b"}},
		{"a list of one without an index", "A=a", func(a args) any { return a.list("A") }, []string{"a"}},
		{"tags from zero", "T.0.Key=a&T.1.Key=b", func(a args) any { return a.tags("T") }, []tag{{Key: "a"}, {Key: "b"}}},
		{"ids that are repeated", "InstanceId.1=a&InstanceId.2=b&InstanceId.3=a", func(a args) any { return a.instanceIDs() }, []string{"a", "b"}},
		{"a list with holes", "A.7=b&A.3=a", func(a args) any { return a.list("A") }, []string{"a", "b"}},
		{"a list that is not there", "B.1=a", func(a args) any { a.ignore("B"); return a.list("A") }, []string(nil)},
		{"true", "A=true", func(a args) any { return a.on("A") }, true},
		{"false", "A=False", func(a args) any { return *a.flag("A") }, false},
		{"no flag", "", func(a args) any { return a.flag("A") == nil }, true},
		{"a number", "A=-12", func(a args) any { return *a.number("A") }, -12},
		{"a group", "A.B.C=d", func(a args) any { return a.group("A").group("B").text("C") }, "d"},
		{"a group that is not there", "", func(a args) any { return a.group("A").group("B").text("C") }, ""},
		{"a list of groups with lists", "F.1.Name=x&F.1.Value.1=a&F.2.Name=y&F.2.Value.1=b&F.2.Value.2=c", func(a args) any {
			var all []string
			for _, g := range a.groups("F") {
				all = append(append(all, g.text("Name")), g.list("Value")...)
			}
			return all
		}, []string{"x", "a", "y", "b", "c"}},
		{"tags with and without a value", "T.1.Key=a&T.1.Value=&T.2.Key=b", func(a args) any { return a.tags("T") }, []tag{{Key: "a", Value: new("")}, {Key: "b"}}},
		{"what is known and means nothing", "A.B.C=1&A=2", func(a args) any { a.ignore("A", "Z"); return nil }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := parsed(t, test.form)
			if got := test.read(a); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %#v, want %#v", got, test.want)
			}
			if err := a.err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParametersThatAreNotWhatTheyShouldBe(t *testing.T) {
	for _, test := range []struct {
		name, form    string
		read          func(args)
		code, message string
	}{
		{"an unknown one", "A=1&B=2", func(a args) { a.text("A") }, "UnknownParameter", "The parameter B is not recognized"},
		{"an unknown one below a known one", "A=1&A.B.C=2", func(a args) { a.text("A") }, "UnknownParameter", "The parameter A.B.C is not recognized"},
		{"a list that is unknown", "Resources.0=x&Resources.1=y", func(a args) { a.list("A") }, "UnknownParameter", "The parameter Resources is not recognized"},
		{"a list of groups that is unknown", "Item.1.Key=x", func(a args) { a.tags("Tag") }, "UnknownParameter", "The parameter Item is not recognized"},
		{"one in the way of other AWS services", "A.1=x&A.member.1=y", func(a args) { a.list("A") }, "UnknownParameter", "The parameter A.member.1 is not recognized"},
		{"a list of groups without an index", "A.Key=x", func(a args) { a.tags("A") }, "UnknownParameter", "The parameter A.Key is not recognized"},
		{"an index of two zeros", "A.00=x", func(a args) { a.list("A") }, "UnknownParameter", "A.00"},
		{"an index with a leading zero", "A.01=x&A.1=y", func(a args) { a.list("A") }, "UnknownParameter", "A.01"},
		{"a negative index", "A.-1=x", func(a args) { a.list("A") }, "UnknownParameter", "A.-1"},
		{"an index that is no number", "A.x=x", func(a args) { a.list("A") }, "UnknownParameter", "A.x"},
		{"an index beyond all bounds", "A.99999999999999999999=x", func(a args) { a.list("A") }, "UnknownParameter", "A.99999999999999999999"},
		{"an empty name", "=x", func(args) {}, "UnknownParameter", "The parameter  is"},
		{"a name that ends in a dot", "A.=x", func(a args) { a.text("A") }, "UnknownParameter", "A."},
		{"no flag", "A=maybe", func(a args) { a.flag("A") }, "InvalidParameterValue", "Invalid value 'maybe' for boolean parameter A"},
		{"no number", "A=1.5", func(a args) { a.number("A") }, "InvalidParameterValue", "Invalid value '1.5' for parameter A"},
		{"a number that is too large", "A=4294967296", func(a args) { a.number("A") }, "InvalidParameterValue", "4294967296"},
		{"a missing one", "", func(a args) { a.required("A") }, "MissingParameter", "The request must contain the parameter A"},
		{"an empty one that is required", "A=", func(a args) { a.required("A") }, "MissingParameter", "The request must contain the parameter A"},
		{"a missing one in a group", "F.3.Value=x", func(a args) { a.tags("F") }, "MissingParameter", "the parameter F.3.Key"},
		{"a tag that comes twice", "T.1.Key=a&T.2.Key=a", func(a args) { a.tags("T") }, "InvalidParameterValue", "Duplicate tag key 'a' specified."},
		{"a missing one that is there in another form", "A.1=x", func(a args) { a.required("A") }, "UnknownParameter", "The parameter A.1 is not recognized"},
		{"the first of several", "A=x&B=y", func(a args) { a.number("B"); a.number("A") }, "InvalidParameterValue", "'y'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := parsed(t, test.form)
			test.read(a)
			wantCode(t, a.err(), test.code, test.message)
		})
	}
}

func TestANameOfTooManyPartsIsUnknown(t *testing.T) {
	_, err := tree("A.B.C.D.E.F.G.H.I.J.K=1")
	wantCode(t, err, "UnknownParameter", "A.B.C.D.E.F.G.H.I.J.K")
	parsed(t, "A.B.C.D.E.F.G.H.I.J=1")
}

func TestFormsThatAreNotWellFormed(t *testing.T) {
	for _, test := range []struct{ name, form, message string }{
		{"a name that comes twice", "A=1&A=2", "The parameter A is given more than once"},
		{"a percent sign without digits", "A=%", "not well formed"},
		{"a semicolon that some take for an ampersand", "A=1;B=2", "want a semicolon as %3B"},
		{"a name that is not UTF-8", "%ff=1", "not well formed"},
		{"a value that is not UTF-8", "A=%c3", "not well formed"},
		{"a name that is too long", strings.Repeat("A", 257) + "=1", "at most 256"},
		{"too many", strings.Repeat("A&", maxParameters), "at most 5000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := tree(test.form)
			wantCode(t, err, "InvalidRequest", test.message)
		})
	}
}

func FuzzParameters(f *testing.F) {
	f.Add("Action=StartInstances&Version=2016-11-15&InstanceId.1=i-1234567890abcdef0&DryRun=true")
	f.Add("Filter.1.Name=tag%3AName&Filter.1.Value.1=*&Filter.1.Value.2=%5C%3F&MaxResults=5")
	f.Add("TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b&MinCount=1&MaxCount=2&ImageId=x")
	f.Add("A.1=x&A.member.1=y&A..=&=&.&%00=%ff&A.B.C.D.E")
	f.Fuzz(func(t *testing.T, form string) {
		root, err := tree(form)
		if err != nil {
			if refused := refusalOf(err, "id"); refused.status != 400 {
				t.Errorf("status %d for %v", refused.status, err)
			}
			return
		}
		a := newArgs(root, func() {})
		a.instanceIDs()
		a.page(nil)
		a.filter(instanceFilters).match(&instance.Instance{ID: "i-1234567890abcdef0", Tags: map[string]string{"Name": form}})
		a.launch()
		a.modification()
		a.tagged()
		a.tags("Tag")
		if err := a.err(); err != nil {
			refused := refusalOf(err, "id")
			if refused.status != 400 {
				t.Errorf("status %d for %v", refused.status, err)
			}
			wellFormed(t, must(encodeError(refused, "id")))
		}
	})
}

func TestAFormOfASDKIsRead(t *testing.T) {
	form := url.Values{
		"Action": {"DescribeInstances"}, "Version": {version}, "MaxResults": {"100"},
		"Filter.1.Name": {"instance-id"}, "Filter.1.Value.1": {"i-1234567890abcdef0"},
	}
	a := parsed(t, form.Encode())
	a.ignore("Action", "Version")
	f := a.filter(instanceFilters)
	if p := a.page(nil); p.size != 100 || p.token != "" {
		t.Errorf("page %+v", p)
	}
	if !f.match(&instance.Instance{ID: "i-1234567890abcdef0"}) || f.match(&instance.Instance{ID: "i-1234567890abcdef1"}) {
		t.Error("the filter selects otherwise")
	}
	if err := a.err(); err != nil {
		t.Error(err)
	}
}

func TestParametersAreForgottenWhenTheyHaveBeenRead(t *testing.T) {
	a := parsed(t, "Action=X&NetworkInterface.1.2.3=4")
	ended := false
	a.read = func() { ended = true }
	a.ignore("Action", "NetworkInterface")
	if err := a.err(); err != nil || !ended || len(a.node.children) != 0 {
		t.Errorf("%v, ended %t, left %v", err, ended, a.node.children)
	}
}
