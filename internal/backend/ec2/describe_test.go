package ec2

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// everything describes by pages.
func everything(t testing.TB, b *Backend, query instance.DescribeQuery) (all []*instance.Instance, pages int) {
	t.Helper()
	for {
		p, err := b.Describe(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p.Instances...)
		pages++
		if query.PageToken = p.NextPageToken; query.PageToken == "" {
			return all, pages
		}
	}
}

func TestDescribeAsksByFilter(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		ec2 := simulate(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{Count: 450, Tags: map[string]string{"team": "x"}}}})
		e := &endpoint{answer: simulated{ec2}.answer}
		b := connect(t, e)
		all, pages := everything(t, b, instance.DescribeQuery{All: true, PageSize: 100})
		if len(all) != 450 || pages != 5 {
			t.Errorf("%d instances on %d pages", len(all), pages)
		}
		var asked []instance.ID
		for _, inst := range all {
			asked = append(asked, inst.ID)
		}
		again, pages := everything(t, b, instance.DescribeQuery{IDs: append(asked, "i-0fffffffffffffff0")})
		if len(again) != 450 || pages != 3 {
			t.Errorf("%d instances on %d pages by ids", len(again), pages)
		}
		some, pages := everything(t, b, instance.DescribeQuery{IDs: asked[:12], PageSize: 5})
		if len(some) != 12 || pages != 3 {
			t.Errorf("%d instances on %d pages of 5", len(some), pages)
		}
		for _, c := range e.of(actionDescribe) {
			if c.form.Has("InstanceId.1") || len(c.ids) > maxFilterValues || c.form.Get("MaxResults") == "" {
				t.Errorf("a call was %v", c.form)
			}
		}
	})
}

func TestInstancesAreConvertedInFull(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		ec2 := simulate(t, sim.Config{Speed: 1, Fleet: append(sim.BuiltinFleet(), sim.Spec{State: instance.StateTerminated})})
		if _, err := ec2.Execute(t.Context(), instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{"i-0a000000000000001"}}); err != nil {
			t.Fatal(err)
		}
		want, err := ec2.Describe(t.Context(), instance.DescribeQuery{All: true})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := everything(t, connect(t, &endpoint{answer: simulated{ec2}.answer}), instance.DescribeQuery{All: true})
		if len(got) != len(want.Instances) {
			t.Fatalf("%d instances, want %d", len(got), len(want.Instances))
		}
		for i, inst := range want.Instances {
			inst = inst.Clone()
			inst.Simulator = nil
			inst.LaunchTime = inst.LaunchTime.Truncate(time.Millisecond)
			if !got[i].Equal(inst) {
				t.Errorf("instance is\n%+v, want\n%+v", got[i], inst)
			}
		}
	})
}

func TestImagesAndHostNamesAreWhatEC2Says(t *testing.T) {
	want := []*instance.Instance{
		{ // its subnet names it by its id, and its VPC has no DNS hostnames
			ID: id(1), State: instance.StateRunning, ImageID: "ami-12c6146b", AMILaunchIndex: 2,
			PrivateIPAddress: "10.0.0.1", PublicIPAddress: "203.0.113.25", PrivateDNSName: string(id(1)) + ".ec2.internal",
		},
		{ID: id(2), State: instance.StateTerminated, ImageID: "ami-0123456789abcdef0"},
		{
			ID: id(3), State: instance.StateStopped, ImageID: "ami-0123456789abcdef0", AMILaunchIndex: 1,
			PrivateIPAddress: "10.0.0.3", PrivateDNSName: "ip-10-0-0-3.ec2.internal",
		},
	}
	b := connect(t, &endpoint{answer: func(context.Context, call) (reply, error) { return described(want, ""), nil }})
	got, _ := everything(t, b, instance.DescribeQuery{All: true})
	if len(got) != len(want) {
		t.Fatalf("%d instances, want %d", len(got), len(want))
	}
	for n, i := range got {
		if w := want[n]; i.ImageID != w.ImageID || i.AMILaunchIndex != w.AMILaunchIndex || i.PrivateDNSName != w.PrivateDNSName || i.PublicDNSName != w.PublicDNSName {
			t.Errorf("instance is\n%+v, want\n%+v", i, w)
		}
	}
}

func TestUnmanagedInstancesDoNotExist(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		tagged := func(value string) map[string]string { return map[string]string{"team": value} }
		ec2 := simulate(t, sim.Config{Speed: 1, Fleet: []sim.Spec{
			{ID: id(1), Tags: tagged("x")}, {ID: id(2), Tags: tagged("y*")}, {ID: id(3), Tags: tagged("z")}, {ID: id(4)},
		}})
		e := &endpoint{answer: simulated{ec2}.answer}
		b := connect(t, e, func(c *Config) { c.Manage = map[string][]string{"team": {"x", "z"}} })
		for _, query := range []instance.DescribeQuery{{All: true}, {IDs: ids(1, 5)}} {
			all, _ := everything(t, b, query)
			if len(all) != 2 || all[0].ID != id(1) || all[1].ID != id(3) {
				t.Errorf("%+v shows %d instances", query, len(all))
			}
		}
		for _, cmd := range []instance.Command{start(id(2)), start(id(1), id(4), id(2))} {
			o := execute(t.Context(), b, cmd)[0]
			if e := o.refusedAs(t); e.Kind != instance.KindNotFound || e.Message != instance.NotFound(slices.DeleteFunc(slices.Clone(cmd.IDs), func(i instance.ID) bool { return i == id(1) })...).Message {
				t.Errorf("error is %v", e)
			}
		}
		if calls := len(e.of(instance.VerbStart)); calls != 0 {
			t.Errorf("%d calls were made", calls)
		}
		o := execute(t.Context(), b, each(start(ids(1, 5)...)))[0]
		if o.err != nil || len(o.result.Changes) != 2 || len(o.result.Failures) != 2 || o.result.Failures[0].ID != id(2) {
			t.Errorf("outcome is %+v", o)
		}
		for _, c := range e.of(instance.VerbStart) {
			if c.among(id(2)) || c.among(id(4)) {
				t.Errorf("a call was for %v", c.ids)
			}
		}
	})
}

func TestRejectedCredentialsAreAnInternalError(t *testing.T) {
	for _, code := range []string{"AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "RequestExpired"} {
		inBubble(t, code, func(t *testing.T) {
			e := &endpoint{answer: func(context.Context, call) (reply, error) {
				return refusal(401, code, "AWS was not able to validate the provided access credentials"), nil
			}}
			b := connect(t, e)
			for _, o := range execute(t.Context(), b, start(id(1)), start(id(2)), each(start(id(3), id(4)))) {
				if e := o.refusedAs(t); e.Kind != instance.KindInternal || e.OutcomeUnknown {
					t.Errorf("error is %+v", e)
				}
			}
			if calls := len(e.of(instance.VerbStart)); calls > 3 {
				t.Errorf("%d calls", calls)
			}
		})
	}
	inBubble(t, "there are none", func(t *testing.T) {
		b := connect(t, &endpoint{}, func(c *Config) {
			c.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{}, errors.New("no EC2 IMDS role found")
			})
		})
		if e := execute(t.Context(), b, start(id(1)))[0].refusedAs(t); e.Kind != instance.KindInternal {
			t.Errorf("error is %+v", e)
		}
	})
	inBubble(t, "their source cannot be reached", func(t *testing.T) {
		b := connect(t, &endpoint{}, func(c *Config) {
			c.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{}, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			})
		})
		if e := execute(t.Context(), b, start(id(1)))[0].refusedAs(t); e.Kind != instance.KindUnavailable || e.Reason != instance.ReasonBackendUnavailable || e.OutcomeUnknown {
			t.Errorf("error is %+v", e)
		}
	})
}

func TestEC2ThatCannotBeReachedFailsFast(t *testing.T) {
	b := connect(t, nil, func(c *Config) {
		c.AWS.HTTPClient, c.AWS.BaseEndpoint = nil, new("http://127.0.0.1:1")
	})
	e := execute(t.Context(), b, start(id(1)))[0].refusedAs(t)
	if e.Kind != instance.KindUnavailable || e.OutcomeUnknown || e.Reason != instance.ReasonBackendUnavailable {
		t.Errorf("error is %+v", e)
	}
}

// A reader that leaves while it waits for a token costs nothing.
func TestAReadThatIsNotSentCostsNoToken(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer}, func(c *Config) {
			c.Limits.Describe.Requests = &Limit{Capacity: 1, Refill: 0.01}
		})
		query := instance.DescribeQuery{IDs: ids(1, 2)}
		if _, err := b.Describe(t.Context(), query); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := b.Describe(ctx, query); !errors.Is(err, context.Canceled) {
			t.Fatalf("the read that leaves ended with %v", err)
		}
		if level := b.Buckets()[0].Level; level < 0 {
			t.Errorf("the bucket holds %.2f tokens", level)
		}
	})
}
