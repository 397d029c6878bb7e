package sim_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestCreate(t *testing.T) {
	bubble(t, "fills in what is left out", func(t *testing.T) {
		b := open(t, sim.Config{AccountID: "210987654321", Region: "eu-west-1"})
		inst := get(t, b, create(t, b, sim.Spec{})[0])
		if !regexp.MustCompile(`^i-0[0-9a-f]{16}$`).MatchString(string(inst.ID)) {
			t.Errorf("the id is %s", inst.ID)
		}
		if inst.AccountID != "210987654321" || inst.Region != "eu-west-1" || inst.AvailabilityZone != "eu-west-1a" ||
			inst.Type != "t3.micro" || inst.State != instance.StateStopped || inst.Tenancy != "default" ||
			inst.RootDeviceType != "ebs" || inst.Simulator.CPUCredits != "unlimited" || inst.PrivateIPAddress == "" || inst.LaunchTime.IsZero() {
			t.Errorf("it is %+v, %+v", inst, inst.Simulator)
		}
	})
	credits := []struct{ instanceType, tenancy, want string }{
		{"t2.micro", "", "standard"},
		{"t3a.micro", "", "unlimited"},
		{"t4g.micro", "dedicated", "unlimited"},
		{"t3.micro", "host", "standard"},
		{"m5.large", "", ""},
	}
	for _, test := range credits {
		bubble(t, fmt.Sprintf("gives a %s of tenancy %q the CPU credits of EC2", test.instanceType, test.tenancy), func(t *testing.T) {
			b := open(t, sim.Config{})
			inst := get(t, b, create(t, b, sim.Spec{Type: test.instanceType, Tenancy: test.tenancy})[0])
			if inst.Simulator.CPUCredits != test.want {
				t.Fatalf("it has %q, want %q", inst.Simulator.CPUCredits, test.want)
			}
		})
	}
	bubble(t, "keeps the order, and does not keep the caller's tags", func(t *testing.T) {
		b := open(t, sim.Config{})
		tags := map[string]string{"Name": "one"}
		ids := create(t, b, sim.Spec{Count: 2, Type: "m5.large"}, sim.Spec{ID: id, Tags: tags}, sim.Spec{Type: "c5.large"})
		tags["Name"] = "two"
		if len(ids) != 4 || ids[2] != id || get(t, b, ids[3]).Type != "c5.large" || get(t, b, id).Tags["Name"] != "one" {
			t.Fatalf("ids are %v", ids)
		}
	})
	bubble(t, "adds faults to the plan", func(t *testing.T) {
		b := open(t, sim.Config{Faults: []sim.Fault{{Kind: sim.Unavailable, Remaining: 3}}})
		if _, err := b.Create(t.Context(), nil, sim.Fault{Kind: sim.InternalError}); err != nil {
			t.Fatal(err)
		}
		if faults := b.Faults(); len(faults) != 2 || faults[1].Kind != sim.InternalError {
			t.Fatalf("faults are %+v", faults)
		}
	})
	bubble(t, "refuses all that is wrong together, and creates nothing", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: []sim.Spec{{ID: other}}})
		tags := map[string]string{}
		for i := range 51 {
			tags[fmt.Sprint(i)] = ""
		}
		bad := []struct {
			spec  sim.Spec
			field string
		}{
			{sim.Spec{ID: "foobar"}, ".instance_id"},
			{sim.Spec{Type: "huge"}, ".instance_type"},
			{sim.Spec{AvailabilityZone: "eu-west-1a"}, ".availability_zone"},
			{sim.Spec{State: 99}, ".state"},
			{sim.Spec{Tags: tags}, ".tags"},
			{sim.Spec{Tags: map[string]string{"aws:x": ""}}, ".tags"},
			{sim.Spec{Tags: map[string]string{"": ""}}, ".tags"},
			{sim.Spec{Tags: map[string]string{"k": strings.Repeat("v", 257)}}, `.tags["k"]`},
			{sim.Spec{Tenancy: "shared"}, ".tenancy"},
			{sim.Spec{RootDeviceType: "floppy"}, ".root_device_type"},
			{sim.Spec{Lifecycle: "scheduled"}, ".instance_lifecycle"},
			{sim.Spec{CPUCredits: "free"}, ".cpu_credits"},
			{sim.Spec{Type: "m5.large", CPUCredits: "standard"}, ".cpu_credits"},
			{sim.Spec{RootDeviceType: "instance-store"}, ".state"},
			{sim.Spec{RootDeviceType: "instance-store", State: instance.StateRunning, HibernationConfigured: true}, ".hibernation_configured"},
			{sim.Spec{Count: -1}, ".count"},
			{sim.Spec{ID: "i-12345678", Count: 2}, ".count"},
			{sim.Spec{ID: "i-12345678"}, ".instance_id"},
			{sim.Spec{}, ""},
		}
		var specs []sim.Spec
		var want []string
		for i, s := range bad {
			specs = append(specs, s.spec)
			if s.field != "" {
				want = append(want, fmt.Sprintf("instances[%d]%s", i, s.field))
			}
		}
		_, err := b.Create(t.Context(), specs, sim.Fault{})
		e := asError(t, err)
		if v := e.Violations[4]; v.Field != "instances[4].tags" || v.Reason != "TagLimitExceeded" {
			t.Errorf("of too many tags it says %+v", v)
		}
		if e.Kind != instance.KindInvalid || e.Violations[0].Reason != instance.CodeMalformedID {
			t.Fatalf("error is %+v", e)
		}
		equal(t, "fields", fieldsOf(e), append(want, "faults[0].kind"))
		if len(all(t, b)) != 1 || len(b.Faults()) != 0 {
			t.Fatal("something was created")
		}
	})
	refusals := []struct {
		name  string
		specs []sim.Spec
		field string
	}{
		{"an id that exists", []sim.Spec{{ID: id}, {ID: other}}, "instances[1].instance_id"},
		{"nothing", nil, "instances"},
		{"too many", []sim.Spec{{Count: 9999}, {Count: 2}}, "instances"},
	}
	for _, test := range refusals {
		bubble(t, "refuses "+test.name, func(t *testing.T) {
			b := open(t, sim.Config{Fleet: []sim.Spec{{ID: other}}})
			_, err := b.Create(t.Context(), test.specs)
			equal(t, "fields", fieldsOf(asError(t, err)), []string{test.field})
		})
	}
}

func TestBuiltinFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, sim.Config{Speed: sim.DefaultSpeed, Fleet: sim.BuiltinFleet(), Faults: sim.BuiltinFaults()})
		for _, inst := range all(t, b) {
			if inst.Tags["Name"] == "" {
				t.Errorf("%s has no name", inst.ID)
			}
		}
		example := inState(t, b, "i-1234567890abcdef0", instance.StateStopped)
		if example.Type != "t3.micro" {
			t.Errorf("the example is a %s", example.Type)
		}
		refusals := []struct {
			id   instance.ID
			verb instance.Verb
			code string
		}{
			{"i-0a000000000000003", instance.VerbStart, instance.CodeUnsupportedOperation},
			{"i-0a000000000000003", instance.VerbStop, instance.CodeUnsupportedOperation},
			{"i-0a000000000000004", instance.VerbStart, instance.CodeUnsupportedOperation},
			{"i-0a000000000000005", instance.VerbStop, instance.CodeOperationNotPermitted},
			{"i-0a000000000000006", instance.VerbTerminate, instance.CodeOperationNotPermitted},
			{"i-0a0000000000000ca", instance.VerbStart, instance.CodeInsufficientCapacity},
			{"i-0a0000000000000de", instance.VerbReboot, instance.CodeUnauthorized},
		}
		for _, r := range refusals {
			if _, err := do(t, b, r.verb, r.id); asError(t, err).Code != r.code {
				t.Errorf("%s of %s: %v, want %s", r.verb, r.id, err, r.code)
			}
		}
	})
}

// A fleet may be larger than what one call creates, and than the notices that are kept.
func TestAFleetIsLargerThanACall(t *testing.T) {
	const inCall, inFleet = 10_000, 1_000_000
	const size = 2*inCall + 1
	b := sim.New(sim.Config{Fleet: []sim.Spec{{Count: size}}})
	t.Cleanup(b.Close)
	if err := b.Restore(nil); err != nil {
		t.Fatal(err)
	}
	var last instance.ID
	seen := 0
	for query := (instance.DescribeQuery{All: true}); ; {
		page, err := b.Describe(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Instances {
			if i.ID <= last {
				t.Fatalf("%s comes after %s", i.ID, last)
			}
			last = i.ID
		}
		if seen += len(page.Instances); page.NextPageToken == "" {
			break
		}
		query.PageToken = page.NextPageToken
	}
	if seen != size {
		t.Errorf("%d instances are described, want %d", seen, size)
	}
	if _, err := b.Create(t.Context(), []sim.Spec{{Count: inCall + 1}}); err == nil {
		t.Error("a call created more than it may")
	}
	if sim.New(sim.Config{Fleet: []sim.Spec{{Count: inFleet}, {}}}).Err() == nil {
		t.Error("a fleet without bounds is accepted")
	}
}
