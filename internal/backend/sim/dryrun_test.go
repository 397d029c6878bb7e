package sim_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestDryRun(t *testing.T) {
	const missing instance.ID = "i-0eeeeeeeeeeeeeee0"
	denied := sim.Fault{Kind: sim.Unauthorized, Match: sim.Match{Tags: map[string]string{"owner": "them"}}}
	fleet := []sim.Spec{
		{ID: id, State: instance.StateTerminated},
		{ID: "i-0000000000000000a", Tags: map[string]string{"owner": "them"}},
	}
	tests := []struct {
		name    string
		ids     []instance.ID
		options sim.Options
		code    string
	}{
		{"permission is all that is asked: the state does not matter", []instance.ID{id}, sim.Options{}, instance.CodeDryRun},
		{"nor does existence", []instance.ID{missing}, sim.Options{}, instance.CodeDryRun},
		{"a dry run of what is denied", []instance.ID{id, "i-0000000000000000a"}, sim.Options{}, instance.CodeUnauthorized},
		{"existence first, where it is said so", []instance.ID{missing}, sim.Options{ExistenceFirst: true}, instance.CodeNotFound},
	}
	for _, test := range tests {
		for _, perInstance := range []bool{false, true} {
			bubble(t, fmt.Sprintf("%s, per instance %t", test.name, perInstance), func(t *testing.T) {
				b := open(t, sim.Config{Speed: 1, Fleet: fleet, Faults: []sim.Fault{denied}, Options: test.options})
				heard := listen(t, b)
				result, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: test.ids, DryRun: true, PerInstance: perInstance})
				e := asError(t, err)
				if e.Code != test.code {
					t.Fatalf("error is %v, want %s", e, test.code)
				}
				if e.Code == instance.CodeDryRun {
					refuses(t, err, instance.KindDryRun, instance.CodeDryRun, "Request would have succeeded, but DryRun flag is set.")
				}
				if len(result.Changes)+len(result.Failures) != 0 {
					t.Fatalf("a dry run has the result %+v", result)
				}
				if n := len(heard()); n != len(fleet) {
					t.Fatalf("%d notices, want only the ones of the creation", n)
				}
			})
		}
	}
	bubble(t, "the text names the principal, the action and the instance", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: fleet, Faults: []sim.Fault{denied}})
		_, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{"i-0000000000000000a"}, Principal: "ana"})
		e := asError(t, err)
		const want = "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/ana is not authorized to perform: ec2:StartInstances on resource: arn:aws:ec2:us-east-1:123456789012:instance/i-0000000000000000a because no identity-based policy allows the ec2:StartInstances action. Encoded authorization failure message: "
		if e.Kind != instance.KindPermission || !strings.HasPrefix(e.Message, want) || len(e.Message) != len(want)+64 {
			t.Fatalf("error is %+v", e)
		}
	})
}
