package ec2

import (
	"strings"
	"testing"
)

func TestMissingLimitsHaveDefaults(t *testing.T) {
	limits, err := ParseLimits([]byte(`{"StartInstances": {"requests": {"capacity": 20, "refill": 8}}}`))
	if err != nil {
		t.Fatal(err)
	}
	complete := limits.withDefaults()
	if *complete.Start.Requests != (Limit{Capacity: 20, Refill: 8}) || *complete.Start.Instances != (Limit{Capacity: 1000, Refill: 2}) || *complete.Describe.Requests != (Limit{Capacity: 100, Refill: 20}) {
		t.Errorf("limits are %+v %+v %+v", *complete.Start.Requests, *complete.Start.Instances, *complete.Describe.Requests)
	}
}

func TestAllWrongLimitsAreNamed(t *testing.T) {
	_, err := ParseLimits([]byte(`{
		"StartInstances": {"requests": {"capacity": 0, "refill": 8}},
		"RebootInstances": {"requests": {"capacity": 1, "refill": 8}},
		"RunInstances": {"requests": {"capacity": 1, "refill": 8}},
		"DescribeInstances": {"instances": {"capacity": 1, "refill": 8}},
		"StopInstances": {"instances": {"capacity": 1, "refill": -1}}}`))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"StartInstances.requests", "RebootInstances shares", `"RunInstances" is not an action`, "DescribeInstances has no bucket of instances", "StopInstances.instances"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not contain %q: %v", want, err)
		}
	}
	for _, text := range []string{``, `[]`, `{"StartInstances": {"request": {}}}`, `{} {}`} {
		if _, err := ParseLimits([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
