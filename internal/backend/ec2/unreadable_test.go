package ec2

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// oddities are what EC2 says of an instance in place of its state.
var oddities = map[string]string{
	"an unknown state": "<instanceState><code>96</code><name>rebooting</name></instanceState>",
	"no code":          "<instanceState><name>running</name></instanceState>",
	"no state":         "",
	// The SDK gives up a response for each of these.
	"a code that is no number": "<instanceState><code>sixteen</code><name>running</name></instanceState>",
	"an element in the code":   "<instanceState><code><high>0</high></code></instanceState>",
}

// region is an EC2 whose instances are changed by others, and which describes some of them
// oddly.
type region struct {
	mu       sync.Mutex
	states   map[instance.ID]instance.State
	launched map[instance.ID]time.Time // the last time; the zero time where there is none
	odd      map[instance.ID]string
	// next returns the token behind a page; nil for none.
	next func(token string) string
}

func (r *region) set(id instance.ID, s instance.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states[id] = s
	if s == instance.StateRunning {
		if r.launched == nil {
			r.launched = make(map[instance.ID]time.Time)
		}
		r.launched[id] = time.Now()
	}
}

// describe says what stands in place of the state of an instance, nil for its state.
func (r *region) describe(id instance.ID, odd *string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.odd, id)
	if odd != nil {
		r.odd[id] = *odd
	}
}

func (r *region) answer(_ context.Context, c call) (reply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.action != "DescribeInstances" {
		var changes []instance.StateChange
		for _, id := range c.ids {
			if r.states[id] == instance.StateStopped {
				r.states[id] = instance.StatePending
				changes = append(changes, instance.StateChange{ID: id, Previous: instance.StateStopped, Current: instance.StatePending})
			} else {
				changes = append(changes, instance.StateChange{ID: id, Previous: r.states[id], Current: r.states[id]})
			}
		}
		answer := changed(c.action, changes)
		for id, odd := range r.odd {
			for _, name := range []string{"currentState", "previousState"} {
				answer.body = mangle(answer.body, id, name, strings.ReplaceAll(odd, "instanceState", name))
			}
		}
		return answer, nil
	}
	var list []*instance.Instance
	for id, state := range r.states {
		if len(c.ids) == 0 || slices.Contains(c.ids, id) {
			list = append(list, &instance.Instance{ID: id, State: state, Type: "t3.micro", AvailabilityZone: "us-east-1a", RootDeviceType: "ebs", Tenancy: "default", LaunchTime: r.launched[id]})
		}
	}
	next := ""
	if r.next != nil {
		next = r.next(c.form.Get("NextToken"))
	}
	answer := described(list, next)
	for id, odd := range r.odd {
		answer.body = mangle(answer.body, id, "instanceState", odd)
	}
	return answer, nil
}

// mangle replaces an element behind an id.
func mangle(body string, id instance.ID, name, with string) string {
	head, tail, found := strings.Cut(body, string(id)+"</instanceId>")
	if !found {
		return body
	}
	before, rest, _ := strings.Cut(tail, "<"+name+">")
	_, after, _ := strings.Cut(rest, "</"+name+">")
	return head + string(id) + "</instanceId>" + before + with + after
}

func TestAnInstanceInAnUnknownStateHoldsUpNoOther(t *testing.T) {
	for name, odd := range oddities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &region{states: make(map[instance.ID]instance.State), odd: map[instance.ID]string{id(3): odd}}
			for _, id := range ids(1, 7) {
				r.states[id] = instance.StateStopped
			}
			e := &endpoint{answer: r.answer}
			srv := httptest.NewServer(e)
			t.Cleanup(srv.Close)
			// The journal is empty, and the service gets ready anyway.
			d := serve(t, srv.URL, func(c *lifecycle.Config) { c.ReconcileInterval = 50 * time.Millisecond })
			read, err := d.api.DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{})
			if err != nil || len(read.GetInstances()) != 5 {
				t.Fatalf("there are %v, %v", read.GetInstances(), err)
			}
			_, err = d.api.DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: []string{string(id(3))}}})
			if s := status.Convert(err); s.Code() != grpccodes.Unavailable || !strings.Contains(s.Message(), string(id(3))+" is described in a way that cannot be understood") {
				t.Errorf("the look-up says %v", err)
			}
			// One that is known keeps its state, while others change.
			r.describe(id(2), &odd)
			r.set(id(2), instance.StateTerminated)
			for _, id := range []instance.ID{id(1), id(4), id(5), id(6)} {
				r.set(id, instance.StateRunning)
				d.await(t, id, instance.StateRunning)
			}
			read, err = d.api.DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: []string{string(id(2))}}})
			if err != nil || read.GetInstances()[0].GetState().GetName() != instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED {
				t.Errorf("it is %v, %v", read.GetInstances(), err)
			}
			for _, id := range []instance.ID{id(2), id(3)} {
				if n := strings.Count(d.log.String(), "keeps its last state\" instance_id="+string(id)); n != 1 {
					t.Errorf("%s is named %d times:\n%s", id, n, d.log)
				}
			}
			r.describe(id(2), nil)
			r.describe(id(3), nil)
			d.await(t, id(2), instance.StateTerminated)
			d.await(t, id(3), instance.StateStopped)
		})
	}
}

// odds are elements that the SDK cannot decode in the description of an instance.
var odds = map[string]string{
	"a launch time that is none": "<launchTime>yesterday</launchTime>",
	"an empty launch time":       "<launchTime></launchTime>",
	"a number in words":          "<amiLaunchIndex>first</amiLaunchIndex>",
	"a number that is too large": "<amiLaunchIndex>99999999999999999999</amiLaunchIndex>",
	"neither true nor false":     "<ebsOptimized>perhaps</ebsOptimized>",
	"an element in a text":       "<reason><why/></reason>",
	"a tag with an element":      "<tagSet><item><key>a<b/></key></item></tagSet>",
	"an odd device":              "<blockDeviceMapping><item><ebs><attachTime>then</attachTime></ebs></item></blockDeviceMapping>",
}

// withOdds puts elements into the description of an instance, or into its reservation.
func withOdds(body string, id instance.ID, odds string) string {
	return strings.Replace(body, "<instanceId>"+string(id)+"</instanceId>", "<instanceId>"+string(id)+"</instanceId>"+odds, 1)
}

func TestAnInstanceThatTheSDKCannotDecodeIsUnreadableAlone(t *testing.T) {
	list := []*instance.Instance{
		{ID: id(1), State: instance.StateStopped},
		{ID: id(2), State: instance.StateRunning},
		{ID: id(3), State: instance.StateRunning},
		{ID: id(4), State: instance.StatePending},
	}
	page := described(list, "next").body
	oneReservation := strings.ReplaceAll(page, "</instancesSet></item><item><reservationId>r-0</reservationId><ownerId></ownerId><instancesSet>", "")
	if strings.Count(oneReservation, "<reservationId>") != 1 {
		t.Fatal(oneReservation)
	}
	bodies := map[string]string{
		"an odd reservation": strings.Replace(page, "<ownerId></ownerId><instancesSet><item><instanceId>"+string(id(2)), "<ownerId><name/></ownerId><instancesSet><item><instanceId>"+string(id(2)), 1),
	}
	for name, odd := range odds {
		bodies[name] = withOdds(page, id(2), odd)
		bodies[name+" in a shared reservation"] = withOdds(oneReservation, id(2), odd)
	}
	for name, body := range bodies {
		inBubble(t, name, func(t *testing.T) {
			e := &endpoint{answer: func(context.Context, call) (reply, error) { return reply{200, body}, nil }}
			p, err := connect(t, e).Describe(t.Context(), instance.DescribeQuery{All: true})
			if err != nil || p.NextPageToken == "" {
				t.Fatalf("page token %q, %v", p.NextPageToken, err)
			}
			var readable []instance.ID
			for _, i := range p.Instances {
				readable = append(readable, i.ID)
			}
			if !slices.Equal(readable, []instance.ID{id(1), id(3), id(4)}) || len(p.Unreadable) != 1 || p.Unreadable[id(2)] == nil {
				t.Errorf("%v can be read, %v not", readable, p.Unreadable)
			}
			if n := len(e.of(actionDescribe)); n != 1 {
				t.Errorf("EC2 was called %d times", n)
			}
		})
	}
}

func TestAResponseThatIsCutOffIsNoResponse(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		page := described([]*instance.Instance{{ID: id(1), State: instance.StateStopped}, {ID: id(2), State: instance.StateRunning}}, "").body
		page = page[:strings.Index(page, string(id(2)))]
		e := &endpoint{answer: func(context.Context, call) (reply, error) { return reply{200, page}, nil }}
		p, err := connect(t, e).Describe(t.Context(), instance.DescribeQuery{All: true})
		if err == nil {
			t.Errorf("it is read as %+v", p)
		}
	})
}

// FuzzOneInstance has anything in one instance's description, and in its line of the answer
// to a command: the others' are there.
func FuzzOneInstance(f *testing.F) {
	for _, odd := range odds {
		name, _, _ := strings.Cut(odd[1:], ">")
		f.Add(name, "", "yesterday")
		f.Add(name, "item", "")
	}
	f.Add("instanceId", "", "i-1")
	f.Add("instancesSet", "item", "i-1")
	f.Add("currentState", "code", "x")
	f.Fuzz(func(t *testing.T, name, inner, text string) {
		element := func(name, content string) string { return "<" + name + ">" + content + "</" + name + ">" }
		odd := escape(text)
		if inner != "" {
			odd = element(inner, odd)
		}
		odd = element(name, odd)
		if xml.Unmarshal([]byte(odd), new(struct{})) != nil || strings.ContainsAny(name+inner, "<>") {
			return // an answer of which the whole cannot be read
		}
		e := &endpoint{answer: func(_ context.Context, c call) (reply, error) {
			answer := described([]*instance.Instance{{ID: id(1), State: instance.StateStopped}, {ID: id(2), State: instance.StateStopped}, {ID: id(3), State: instance.StateStopped}}, "")
			if c.action == "StartInstances" {
				var lines []instance.StateChange
				for _, id := range ids(1, 4) {
					lines = append(lines, instance.StateChange{ID: id, Previous: instance.StateStopped, Current: instance.StatePending})
				}
				answer = changed(c.action, lines)
			}
			answer.body = withOdds(answer.body, id(2), odd)
			return answer, nil
		}}
		b := connect(t, e)
		p, err := b.Describe(t.Context(), instance.DescribeQuery{All: true})
		there := make(map[instance.ID]bool)
		for _, i := range p.Instances {
			there[i.ID] = true
		}
		if err != nil || len(p.Instances)+len(p.Unreadable) != 3 || !there[id(1)] || !there[id(3)] {
			t.Errorf("%q: %d instances, %v, %v", odd, len(p.Instances), p.Unreadable, err)
		}
		lines, f := b.client.mutate(t.Context(), dispatch.Key{Verb: instance.VerbStart}, ids(1, 4))
		if f != nil || lines[id(1)].Current != instance.StatePending || lines[id(3)].Current != instance.StatePending {
			t.Errorf("%q: %v, %v", odd, lines, f)
		}
	})
}

// await waits until an instance is in a state.
func (d *doors) await(t *testing.T, id instance.ID, state instance.State) {
	t.Helper()
	for t.Context().Err() == nil {
		resp, err := d.api.WaitInstances(t.Context(), &instancedv1.WaitInstancesRequest{
			InstanceIds: []string{string(id)}, States: []instancedv1.InstanceStateName{instancedv1.InstanceStateName(state)},
		})
		switch {
		case status.Code(err) == grpccodes.Unavailable || status.Code(err) == grpccodes.NotFound:
			continue // it is not known yet
		case err != nil || resp.GetResults()[0].GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
			t.Fatalf("%s does not become %v: %v, %v", id, state, resp, err)
		}
		return
	}
}

func TestAnUnreadableChangeInAResponseFailsOnlyItsCallers(t *testing.T) {
	for name, odd := range oddities {
		inBubble(t, name, func(t *testing.T) {
			r := &region{states: make(map[instance.ID]instance.State), odd: map[instance.ID]string{id(3): odd}}
			for _, id := range ids(1, 6) {
				r.states[id] = instance.StateStopped
			}
			b := connect(t, &endpoint{answer: r.answer, latency: always(50 * time.Millisecond)})
			// All but the first travel together.
			outcomes := execute(t.Context(), b, start(id(1)), start(id(2)), start(id(3)), start(id(3), id(4)), each(start(id(3), id(5))))
			for _, i := range []int{0, 1} {
				if o := outcomes[i]; o.err != nil || o.result.Changes[0].Previous != instance.StateStopped {
					t.Errorf("caller %d: %+v", i, o)
				}
			}
			for i, others := range map[int][]instance.ID{2: nil, 3: {id(4)}} {
				e := outcomes[i].refusedAs(t)
				if e.Kind != instance.KindUnavailable || e.Reason != instance.ReasonAnswerLost || !e.OutcomeUnknown || !strings.Contains(e.Message, string(id(3))) {
					t.Errorf("caller %d: %+v", i, e)
				}
				var changed []instance.ID
				for _, c := range outcomes[i].result.Changes {
					changed = append(changed, c.ID)
				}
				if !slices.Equal(changed, others) {
					t.Errorf("caller %d: beside the error stands %v", i, changed)
				}
			}
			o := outcomes[4]
			if o.err != nil || len(o.result.Changes) != 1 || o.result.Changes[0].ID != id(5) || len(o.result.Failures) != 1 || !o.result.Failures[0].Err.OutcomeUnknown {
				t.Errorf("%+v", o)
			}
		})
	}
}

func TestAnUnreadableInstanceIsStillManaged(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		r := &region{states: map[instance.ID]instance.State{id(1): instance.StateStopped}, odd: map[instance.ID]string{id(1): oddities["no state"]}}
		b := connect(t, &endpoint{answer: r.answer}, func(c *Config) { c.Manage = map[string][]string{"team": nil} })
		if e := execute(t.Context(), b, start(id(1)))[0].refusedAs(t); e.Kind != instance.KindUnavailable {
			t.Errorf("error is %+v", e)
		}
	})
}

func TestACharacterThatXMLCannotHaveHidesNoInstance(t *testing.T) {
	for name, test := range map[string]struct{ tag, want string }{
		"a reference to it":      {"a&#x1b;[31mb", "a\uFFFD[31mb"},
		"one by a decimal":       {"a&#0;b", "a\uFFFDb"},
		"one to half a pair":     {"a&#xD800;b", "a\uFFFDb"},
		"the character itself":   {"a\x1bb", "a\uFFFDb"},
		"what is not UTF-8":      {"a\xffb", "a\uFFFDb"},
		"one that it can have":   {"a&#x9;&#128512;&lt;&amp;#0;", "a\t\U0001F600<&#0;"},
		"a character of any use": {"ä😀", "ä😀"},
	} {
		inBubble(t, name, func(t *testing.T) {
			e := &endpoint{answer: func(context.Context, call) (reply, error) {
				answer := described([]*instance.Instance{
					{ID: id(1), State: instance.StateStopped, Tags: map[string]string{"team": "TAG"}}, {ID: id(2), State: instance.StateRunning},
				}, "")
				answer.body = strings.Replace(answer.body, "TAG", test.tag, 1)
				return answer, nil
			}}
			all, _ := everything(t, connect(t, e), instance.DescribeQuery{All: true})
			if len(all) != 2 || all[0].Tags["team"] != test.want {
				t.Errorf("%d instances, %q", len(all), all[0].Tags["team"])
			}
		})
	}
}

func FuzzLegible(f *testing.F) {
	f.Add([]byte("<a>&#x1b;&#27;&#xD800;&#4294967295;\x00\xff</a>"))
	f.Fuzz(func(t *testing.T, document []byte) {
		out := legible(document)
		if !legibleAlready(out) || !bytes.Equal(legible(out), out) {
			t.Errorf("%q becomes %q", document, out)
		}
		if legibleAlready(document) && !reference.Match(document) && !bytes.Equal(out, document) {
			t.Errorf("%q becomes %q, and was legible", document, out)
		}
	})
}

func TestPagesThatDoNotEndAreAnError(t *testing.T) {
	count := 0
	for name, next := range map[string]func(string) string{
		"a token is repeated":   func(string) string { return "a" },
		"two tokens take turns": func(token string) string { return map[string]string{"": "a", "a": "b", "b": "a"}[token] },
		"a circle after a beginning": func(token string) string {
			return map[string]string{"": "x", "x": "y", "y": "a", "a": "b", "b": "c", "c": "a"}[token]
		},
		"there is always another one": func(string) string { count++; return fmt.Sprint(count) },
	} {
		inBubble(t, name, func(t *testing.T) {
			r := &region{states: map[instance.ID]instance.State{id(1): instance.StateStopped}, next: next}
			e := &endpoint{answer: r.answer}
			b := connect(t, e)
			for _, query := range []instance.DescribeQuery{{All: true}, {IDs: []instance.ID{id(1)}}} {
				before, bound := len(e.of(actionDescribe)), 12
				if name == "there is always another one" {
					bound = maxPages
				}
				var err error
				for err == nil {
					var p instance.DescribePage
					p, err = b.Describe(t.Context(), query)
					query.PageToken = p.NextPageToken
				}
				if e := (outcome{err: err}).refusedAs(t); e.Kind != instance.KindUnavailable || e.Reason != instance.ReasonEndlessPages || !strings.Contains(e.Message, "http://ec2.test") {
					t.Errorf("error is %v", e)
				}
				if n := len(e.of(actionDescribe)) - before; n > bound {
					t.Errorf("EC2 was called %d times", n)
				}
			}
			// What follows pages for itself comes to an end, too.
			if _, err := b.describeAll(t.Context(), []instance.ID{id(1)}); err == nil {
				t.Error("a look came to an end")
			}
		})
	}
}

func TestALongListIsReadToItsEnd(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		const pages = 500
		r := &region{states: map[instance.ID]instance.State{id(1): instance.StateStopped}, next: func(token string) string {
			n := 0
			_, _ = fmt.Sscan(token, &n)
			if n+1 == pages {
				return ""
			}
			return fmt.Sprint(n + 1)
		}}
		if _, n := everything(t, connect(t, &endpoint{answer: r.answer}), instance.DescribeQuery{All: true}); n != pages {
			t.Errorf("%d pages", n)
		}
	})
}

func FuzzPageToken(f *testing.F) {
	f.Add("")
	f.Add("1.a.token")
	f.Add(position{token: "x.y:z", pages: 7, mark: 1 << 63}.String())
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePosition(s)
		if !ok {
			return
		}
		if again, ok := parsePosition(p.String()); !ok || again != p {
			t.Errorf("%q is %+v, and that is %+v", s, p, again)
		}
	})
}
