package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("i-%017x", i)
	}
	return out
}

func TestCommandsAreChecked(t *testing.T) {
	const good = "i-1234567890abcdef0"
	for name, test := range map[string]struct {
		req  CommandRequest
		want []string // fields
		code string
	}{
		"one id":                   {req: CommandRequest{InstanceIDs: []string{good}}},
		"a short id":               {req: CommandRequest{InstanceIDs: []string{"i-0abcdef1"}}},
		"1000 ids":                 {req: CommandRequest{InstanceIDs: ids(1000)}},
		"no ids":                   {req: CommandRequest{}, want: []string{"instance_ids"}},
		"1001 ids":                 {req: CommandRequest{InstanceIDs: ids(1001)}, want: []string{"instance_ids"}},
		"an empty id":              {req: CommandRequest{InstanceIDs: []string{""}}, want: []string{"instance_ids[0]"}, code: instance.CodeMissingParameter},
		"two malformed ids":        {req: CommandRequest{InstanceIDs: []string{"foobar", good, "I-1234567890ABCDEF0"}}, want: []string{"instance_ids[0]", "instance_ids[2]"}, code: instance.CodeMalformedID},
		"a trailing blank":         {req: CommandRequest{InstanceIDs: []string{good + " "}}, want: []string{"instance_ids[0]"}, code: instance.CodeMalformedID},
		"a token of 64 characters": {req: CommandRequest{InstanceIDs: []string{good}, ClientToken: strings.Repeat("t", 64)}},
		"a token of 65 characters": {req: CommandRequest{InstanceIDs: []string{good}, ClientToken: strings.Repeat("t", 65)}, want: []string{"client_token"}},
		"a token beyond ASCII":     {req: CommandRequest{InstanceIDs: []string{good}, ClientToken: "tökén"}, want: []string{"client_token"}},
		"an unknown failure mode":  {req: CommandRequest{InstanceIDs: []string{good}, FailureMode: 9}, want: []string{"failure_mode"}},
		"additional info of 1025 bytes": {
			req:  CommandRequest{InstanceIDs: []string{good}, AdditionalInfo: strings.Repeat("a", 1025)},
			want: []string{"additional_info"},
		},
		"an option of another verb": {
			req:  CommandRequest{InstanceIDs: []string{good}, Hibernate: true, Force: true},
			want: []string{"hibernate", "force"},
		},
		"everything at once": {
			req:  CommandRequest{InstanceIDs: []string{"x"}, FailureMode: 9, ClientToken: "\n"},
			want: []string{"instance_ids[0]", "failure_mode", "client_token"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.req.Verb = instance.VerbStart
			_, err := checkCommand(Caller{}, test.req)
			if len(test.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e, ok := errors.AsType[*instance.Error](err)
			if !ok {
				t.Fatalf("got %v, want an error of type instance.Error", err)
			}
			var fields []string
			for _, v := range e.Violations {
				fields = append(fields, v.Field)
			}
			if e.Kind != instance.KindInvalid || e.Code != test.code || strings.Join(fields, " ") != strings.Join(test.want, " ") {
				t.Errorf("kind %v, code %q, fields %q; want invalid, %q, %q", e.Kind, e.Code, fields, test.code, test.want)
			}
		})
	}
}

func TestARepeatedIDCountsOnce(t *testing.T) {
	list := ids(3)
	cmd, err := checkCommand(Caller{}, CommandRequest{Verb: instance.VerbStop, InstanceIDs: []string{list[2], list[0], list[2], list[1], list[0]}})
	if err != nil {
		t.Fatal(err)
	}
	want := []instance.ID{instance.ID(list[2]), instance.ID(list[0]), instance.ID(list[1])}
	if fmt.Sprint(cmd.IDs) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", cmd.IDs, want)
	}
}

func FuzzPageToken(f *testing.F) {
	scope := filterDigest(&instance.Filter{})
	f.Add("")
	f.Add(newPageToken(scope, "i-1234567890abcdef0"))
	f.Add(newPageToken(scope, historyStart{}.encode()))
	f.Fuzz(func(t *testing.T, token string) {
		var c checker
		if last := c.pageToken(token, scope); c.err() == nil && token != "" {
			if again := c.pageToken(newPageToken(scope, last), scope); again != last || c.err() != nil {
				t.Errorf("%q became %q (%v)", last, again, c.err())
			}
		}
		c = checker{}
		if mark := c.historyStart(token, scope); c.err() == nil && token != "" {
			c = checker{}
			if again := c.historyStart(newPageToken(scope, mark.encode()), scope); again != mark || c.err() != nil {
				t.Errorf("%+v became %+v (%v)", mark, again, c.err())
			}
		}
	})
}

func FuzzFilter(f *testing.F) {
	f.Add("i-1234567890abcdef0", byte(2), "env", "prod", "t3.micro")
	f.Fuzz(func(t *testing.T, id string, state byte, key, value, typ string) {
		var c checker
		filter := c.filter("filter", Filter{
			InstanceIDs: []string{id},
			States:      []instance.State{instance.State(state)},
			Tags:        []TagFilter{{Key: key, Values: []string{value}}},
			Types:       []string{typ},
		})
		if c.err() != nil {
			return
		}
		match := &instance.Instance{ID: instance.ID(id), State: instance.State(state), Type: typ, Tags: map[string]string{key: value}}
		if !filter.Match(match) {
			t.Errorf("%+v does not match what it was made of", filter)
		}
		match.Tags = nil
		if filter.Match(match) {
			t.Errorf("%+v matches an instance without the tag", filter)
		}
	})
}
