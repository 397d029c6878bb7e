package sim_test

import (
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// TestInstanceTypes has every type that the SDK knows, and some unknown ones.
func TestInstanceTypes(t *testing.T) {
	known := types.InstanceType("").Values()
	if len(known) < 1000 {
		t.Fatalf("the SDK knows %d types", len(known))
	}
	b := open(t, sim.Config{})
	launch := func(name string) error {
		_, err := b.Launch(t.Context(), instance.Launch{ImageID: "ami-1", Type: name, Count: 1})
		return err
	}
	for _, name := range append(known, "c10g.112xlarge", "m9gd-flex.large", "u8i-48tb.metal-64xl") {
		if err := launch(string(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "huge", "t3", "t3.", ".micro", "t3.micpo", "t3.Micro", "T3.micro", "t3.micro ", "t3 .micro", "t3.micro.large", "t3,micro",
		"t.micro", "tmicro.large", "micro.t3", "foobar.micro", "nosuch1.micro", "t0.micro", "t333.micro", "m5-.large", "-m5.large", "m5.0xlarge", "m5.large\n",
	} {
		e, ok := errors.AsType[*instance.Error](launch(name))
		if !ok || e.Code != "InvalidParameterValue" || e.Message != "Invalid value '"+name+"' for InstanceType." {
			t.Errorf("%q: %v", name, e)
		}
	}
}
