package simulator_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/server/simulator"
)

const wholeFleet = `
instances:
  - instance_id: i-1234567890abcdef0
    state: stopped
    tags: {Name: web, "1": "2"}
  - instanceType: t3.large        # by its JSON name
    state: shutting-down
    tenancy: host
    cpu_credits: unlimited
    count: 3
  - state: INSTANCE_STATE_NAME_RUNNING
    disable_api_termination: true
faults:
  - kind: slow-call
    delay: 1m30s
    probability: 0.5
    match: {verbs: [StartInstances], tags: {team: red}}
  - kind: FAULT_KIND_FALL_BACK_TO_STOPPED
    state_reason: {code: Client.InternalError}
    remaining: 2
`

func TestParseFleet(t *testing.T) {
	want := &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{
			{
				InstanceId: "i-1234567890abcdef0",
				State:      instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED,
				Tags:       map[string]string{"Name": "web", "1": "2"},
			},
			{
				InstanceType: "t3.large",
				State:        instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN,
				Tenancy:      "host",
				CpuCredits:   "unlimited",
				Count:        3,
			},
			{
				State:                 instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING,
				DisableApiTermination: true,
			},
		},
		Faults: []*instancedv1.Fault{
			{
				Kind:        instancedv1.FaultKind_FAULT_KIND_SLOW_CALL,
				Delay:       durationpb.New(90 * time.Second),
				Probability: 0.5,
				Match:       &instancedv1.FaultMatch{Verbs: []string{"StartInstances"}, Tags: map[string]string{"team": "red"}},
			},
			{
				Kind:        instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED,
				StateReason: &instancedv1.StateReason{Code: "Client.InternalError"},
				Remaining:   2,
			},
		},
	}
	got, err := simulator.ParseFleet([]byte(wholeFleet))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("fleet (-want +got):\n%s", diff)
	}
}

func TestParseFleetNamesWhatIsWrongAndWhatIsRight(t *testing.T) {
	for _, test := range []struct {
		name, file string
		says       []string
	}{
		{"an unknown field", "instances: [{instance_typ: t3.micro}]", []string{"instances[0].instance_typ", "no such field", "instance_type"}},
		{"an unknown field at the top", "machines: []", []string{"machines", "no such field", "instances, faults"}},
		{"an unknown field in a fault", "faults: [{kind: unavailable, match: {verb: [StartInstances]}}]", []string{"faults[0].match.verb", "verbs"}},
		{"two documents", "---\n# one\ninstances: []\n---\ninstances: []", []string{"more than one document", "want one"}},
		{"a key that stands twice", "instances: []\ninstances: []", []string{"line 2", `"instances" already set`}},
		{"a field by two of its names", "instances: [{instance_type: a, instanceType: b}]", []string{"instances[0].instance_type", "twice"}},
		{"a duplicate id", "instances: [{instance_id: i-0123456789abcdef0}, {instance_id: i-0123456789abcdef0}]", []string{"instances[1].instance_id", "instances[0]"}},
		{"a bad state", "instances: [{state: stoped}]", []string{"instances[0].state", "stoped", "pending, running, shutting-down, terminated, stopping, stopped"}},
		{"a state that is a number", "instances: [{state: 6}]", []string{"instances[0].state", "stopped"}},
		{"a number for a text", "instances: [{tenancy: 1}]", []string{"instances[0].tenancy", "a number", "want a text"}},
		{"a number for a tag", "instances: [{tags: {port: 80}}]", []string{"instances[0].tags.port", "want a text"}},
		{"a text for a list", "instances: web", []string{"instances", "a text", "want a list"}},
		{"a list for the file", "- instances", []string{"the file", "a list", "want a mapping"}},
		{"a bad duration", "faults: [{kind: slow-call, delay: 5}]", []string{"faults[0].delay", "500ms"}},
		{"a bad number", "instances: [{count: many}]", []string{"many"}},
		{"no YAML at all", "instances: [", []string{"line 1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := simulator.ParseFleet([]byte(test.file))
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
		})
	}
}

func TestParseFleetOfNothing(t *testing.T) {
	for _, file := range []string{"", "# nothing\n", "{}", "instances: []", "instances:"} {
		got, err := simulator.ParseFleet([]byte(file))
		if err != nil {
			t.Errorf("%q: %v", file, err)
		}
		if len(got.GetInstances())+len(got.GetFaults()) > 0 {
			t.Errorf("%q: got %v", file, got)
		}
	}
}

// FuzzParseFleet: what is accepted means one thing. Written out and read again it is the
// same, and the simulator takes it or says what is wrong with it.
func FuzzParseFleet(f *testing.F) {
	f.Add([]byte(wholeFleet))
	f.Add([]byte(`{"instances":[{"count":1e9,"state":null}],"faults":[{"probability":"NaN"}]}`))
	f.Add([]byte("instances: &a [*a]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Add([]byte("instances: [{state: running, count: 3}]\nfaults: [{kind: slow-call, delay: 5s, match: {verbs: [StartInstances]}}]"))
	f.Fuzz(func(t *testing.T, file []byte) {
		req, err := simulator.ParseFleet(file)
		if err != nil {
			return
		}
		written, err := protojson.Marshal(req)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := simulator.ParseFleet(written)
		if err != nil {
			t.Fatalf("%s is refused: %v", written, err)
		}
		if diff := cmp.Diff(req, again, protocmp.Transform(), cmpopts.EquateNaNs()); diff != "" {
			t.Fatalf("came back otherwise:\n%s", diff)
		}
		fleet, faults := simulator.Fleet(req)
		backend := sim.New(sim.Config{Fleet: fleet, Faults: faults})
		defer backend.Close()
		if backend.Err() != nil {
			return
		}
		if err := backend.Restore(nil); err != nil {
			t.Errorf("a fleet that is said to be right is refused: %v", err)
		}
	})
}
