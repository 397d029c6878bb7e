package ec2

import (
	"slices"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func TestIDsAreFoundInEveryFormOfText(t *testing.T) {
	a, b, c := id(0xa), id(0xb), instance.ID("i-0000000c")
	asked := []instance.ID{a, b, c}
	tests := map[string]struct {
		text string
		want []instance.ID
	}{
		"not startable":       {"The instance '" + string(a) + "' is not in a state from which it can be started.", []instance.ID{a}},
		"never ran":           {"Instance '" + string(a) + "' cannot be stopped as it has never reached the 'running' state.", []instance.ID{a}},
		"not stoppable":       {"This instance '" + string(a) + "' is not in a state from which it can be stopped.", []instance.ID{a}},
		"not rebootable":      {"Cannot reboot instance " + string(a) + " that is currently in stopped state.", []instance.ID{a}},
		"protected":           {"The instance '" + string(a) + "' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.", []instance.ID{a}},
		"instance store":      {"The instance '" + string(a) + "' does not have an 'ebs' root device type and cannot be stopped.", []instance.ID{a}},
		"no root":             {"Invalid value '" + string(a) + "' for instanceId. Instance does not have a volume attached at root (/dev/sda1)", []instance.ID{a}},
		"one missing":         {"The instance ID '" + string(a) + "' does not exist", []instance.ID{a}},
		"several missing":     {"The instance IDs '" + string(a) + ", " + string(b) + "' do not exist", []instance.ID{a, b}},
		"malformed":           {`Invalid id: "` + string(a) + `"`, []instance.ID{a}},
		"of an old form":      {"The instance '" + string(c) + "' is not in a state from which it can be started.", []instance.ID{c}},
		"in an ARN":           {"You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/u is not authorized to perform: ec2:StartInstances on resource: arn:aws:ec2:us-east-1:123456789012:instance/" + string(b) + " because no identity-based policy allows the ec2:StartInstances action. Encoded authorization failure message: i-0000000d0a", []instance.ID{b}},
		"spot":                {"You can't start the Spot Instance '" + string(a) + "' because there is no available Spot capacity.", []instance.ID{a}},
		"not one of the call": {"The instance ID 'i-0ffffffffffffffff' does not exist", nil},
		"nothing":             {"Insufficient capacity.", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := namedIn(test.text, asked); !slices.Equal(got, test.want) {
				t.Errorf("named are %v, want %v", got, test.want)
			}
		})
	}
}

func TestMessagesAreRewrittenForEachCallersInstances(t *testing.T) {
	a, b, c := id(0xa), id(0xb), id(0xc)
	const notFound = instance.CodeNotFound
	tests := map[string]struct {
		code, text, want string
		named, own       []instance.ID
	}{
		"one of several missing": {
			notFound, "The instance IDs '" + string(a) + ", " + string(b) + "' do not exist",
			"The instance ID '" + string(b) + "' does not exist",
			[]instance.ID{a, b},
			[]instance.ID{b},
		},
		"several of several missing, in the caller's order": {
			notFound, "The instance IDs '" + string(a) + ", " + string(b) + ", " + string(c) + "' do not exist",
			"The instance IDs '" + string(c) + ", " + string(a) + "' do not exist",
			[]instance.ID{a, b, c},
			[]instance.ID{c, a},
		},
		"all of them": {
			notFound, "The instance IDs '" + string(a) + ", " + string(b) + "' do not exist",
			"The instance IDs '" + string(a) + ", " + string(b) + "' do not exist",
			[]instance.ID{a, b},
			[]instance.ID{a, b},
		},
		"a list in another text": {
			"SomethingNew", "Instances " + string(a) + ", " + string(b) + " are odd.", "Instances " + string(b) + " are odd.",
			[]instance.ID{a, b},
			[]instance.ID{b},
		},
		"the same said of another": {
			instance.CodeInsufficientCapacity, "You can't start the Spot Instance '" + string(a) + "' because there is no available Spot capacity.",
			"You can't start the Spot Instance '" + string(b) + "' because there is no available Spot capacity.",
			[]instance.ID{a},
			[]instance.ID{b},
		},
		"no instance": {"RequestLimitExceeded", "Request limit exceeded.", "Request limit exceeded.", nil, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := textFor(test.code, test.text, test.named, test.own); got != test.want {
				t.Errorf("text is\n%q, want\n%q", got, test.want)
			}
		})
	}
	if got, want := textForCount("You have requested more instances (17) than your current instance limit of 20 allows", 1), "You have requested more instances (1) than your current instance limit of 20 allows"; got != want {
		t.Errorf("text is %q, want %q", got, want)
	}
}
