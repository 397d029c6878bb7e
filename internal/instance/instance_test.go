package instance

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStatesHaveEC2sCodesAndNames(t *testing.T) {
	want := map[State]struct {
		code int32
		name string
	}{
		StatePending:      {0, "pending"},
		StateRunning:      {16, "running"},
		StateShuttingDown: {32, "shutting-down"},
		StateTerminated:   {48, "terminated"},
		StateStopping:     {64, "stopping"},
		StateStopped:      {80, "stopped"},
	}
	if len(States()) != len(want) {
		t.Fatalf("%d states, want %d", len(States()), len(want))
	}
	for s, w := range want {
		if s.Code() != w.code || s.String() != w.name {
			t.Errorf("got %d %s, want %d %s", s.Code(), s, w.code, w.name)
		}
		for _, high := range []int32{0, 1 << 8, 255 << 8} {
			if got, err := StateFromCode(w.code | high); err != nil || got != s {
				t.Errorf("code %d is %v (%v), want %v: the high byte is to be ignored", w.code|high, got, err, s)
			}
		}
	}
	for _, code := range []int32{1, 15, 96, 240} {
		if s, err := StateFromCode(code); err == nil {
			t.Errorf("code %d is %v, want an error", code, s)
		}
	}
}

func TestAPathIsTheShortestLegalChain(t *testing.T) {
	for _, test := range []struct {
		from, to State
		want     []State
		ok       bool
	}{
		{StateStopped, StatePending, []State{StatePending}, true},
		{StateStopped, StateRunning, []State{StatePending, StateRunning}, true},
		{StateRunning, StateStopped, []State{StateStopping, StateStopped}, true},
		{StateRunning, StatePending, []State{StateStopping, StateStopped, StatePending}, true},
		{StatePending, StateStopped, []State{StateStopped}, true},
		{StateRunning, StateTerminated, []State{StateShuttingDown, StateTerminated}, true},
		{StateStopped, StateTerminated, []State{StateTerminated}, true},
		{StateRunning, StateRunning, nil, true},
		{StateTerminated, StateTerminated, nil, true},
		{StateTerminated, StateStopped, nil, false},
		{StateShuttingDown, StateRunning, nil, false},
	} {
		got, ok := Path(test.from, test.to)
		if ok != test.ok || !slices.Equal(got, test.want) {
			t.Errorf("from %v to %v: got %v, %v; want %v, %v", test.from, test.to, got, ok, test.want, test.ok)
		}
	}
	for _, from := range States() {
		for _, to := range States() {
			path, ok := Path(from, to)
			if ok != Reachable(from, to) || (ok && from != to && path[len(path)-1] != to) {
				t.Errorf("from %v to %v: %v, %v", from, to, path, ok)
			}
			for at := from; len(path) > 0; at, path = path[0], path[1:] {
				if !CanFollow(at, path[0]) {
					t.Errorf("from %v to %v: %v cannot follow %v", from, to, path[0], at)
				}
			}
			if Completes(from, to) && (!from.Transitional() || !CanFollow(from, to)) {
				t.Errorf("%v -> %v completes nothing", from, to)
			}
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"i-1234567890abcdef0", "i-0abcdef1", "", "i-", "foobar", "I-0abcdef1", "i-0ABCDEF1", "i-0abcdef1 ", "i-0abcdef12"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		hex, found := strings.CutPrefix(s, "i-")
		want := found && (len(hex) == 8 || len(hex) == 17) && strings.Trim(hex, "0123456789abcdef") == ""
		if want != (err == nil) || (want && string(id) != s) {
			t.Fatalf("%q: got %q, %v", s, id, err)
		}
		code := CodeMalformedID
		if s == "" {
			code = CodeMissingParameter
		}
		if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.Code != code || e.Kind != KindInvalid || len(e.Message) > 300) {
			t.Errorf("%q: got the error %v", s, err)
		}
	})
}

func TestACloneSharesNothing(t *testing.T) {
	whole := func() *Instance {
		return &Instance{
			ID: "i-1234567890abcdef0", State: StateStopped, LaunchTime: time.Unix(1, 0), Tags: map[string]string{"k": "v"},
			StateReason: &StateReason{Code: "c"},
			Simulator:   &SimulatorAttributes{NextAt: time.Unix(2, 0), NextReason: &StateReason{Code: "n"}, Launched: &Launched{ImageID: "ami"}},
		}
	}
	original := whole()
	clone := original.Clone()
	if !clone.Equal(original) {
		t.Fatal("a clone differs from its original")
	}
	for name, change := range map[string]func(*Instance){
		"state":          func(i *Instance) { i.State = StateRunning },
		"a tag":          func(i *Instance) { i.Tags["k"] = "other" },
		"reason":         func(i *Instance) { i.StateReason.Code = "other" },
		"launch time":    func(i *Instance) { i.LaunchTime = time.Unix(3, 0) },
		"next reason":    func(i *Instance) { i.Simulator.NextReason.Code = "other" },
		"next time":      func(i *Instance) { i.Simulator.NextAt = time.Unix(3, 0) },
		"launch":         func(i *Instance) { i.Simulator.Launched.ImageID = "other" },
		"no attributes":  func(i *Instance) { i.Simulator = nil },
		"billed seconds": func(i *Instance) { i.Simulator.BilledSeconds++ },
	} {
		clone := original.Clone()
		change(clone)
		if clone.Equal(original) || !original.Equal(whole()) {
			t.Errorf("%s: equal %v, the original is as it was %v; want false, true", name, clone.Equal(original), original.Equal(whole()))
		}
	}
}

func TestInstancesThatDifferInAnyFieldAreNotEqual(t *testing.T) {
	differ := func(t *testing.T, name string, set func(*Instance)) {
		t.Helper()
		a, b := &Instance{Simulator: &SimulatorAttributes{}}, &Instance{Simulator: &SimulatorAttributes{}}
		set(a)
		if a.Equal(b) || b.Equal(a) {
			t.Errorf("instances that differ in %s are equal", name)
		}
	}
	for f := range reflect.TypeFor[Instance]().Fields() {
		differ(t, f.Name, func(i *Instance) { setNonZero(t, reflect.ValueOf(i).Elem().FieldByIndex(f.Index)) })
	}
	for f := range reflect.TypeFor[Launched]().Fields() {
		differ(t, "Simulator.Launched."+f.Name, func(i *Instance) {
			i.Simulator.Launched = &Launched{}
			setNonZero(t, reflect.ValueOf(i.Simulator.Launched).Elem().FieldByIndex(f.Index))
		})
	}
	for f := range reflect.TypeFor[SimulatorAttributes]().Fields() {
		differ(t, "Simulator."+f.Name, func(i *Instance) { setNonZero(t, reflect.ValueOf(i.Simulator).Elem().FieldByIndex(f.Index)) })
	}
}

func setNonZero(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	case map[string]string:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
		return
	case *StateReason:
		v.Set(reflect.ValueOf(&StateReason{Code: "c"}))
		return
	case *Launched:
		v.Set(reflect.ValueOf(&Launched{ReservationID: "r"}))
		return
	case *SimulatorAttributes:
		v.SetZero()
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(1)
	default:
		t.Fatalf("a field of type %v: say here how to set it", v.Type())
	}
}

func TestAFilterMatchesAllOfItsFields(t *testing.T) {
	i := &Instance{ID: "i-1234567890abcdef0", State: StateStopped, Type: "t3.micro", Region: "us-east-1", Tags: map[string]string{"env": "prod", "team": "a"}}
	for name, test := range map[string]struct {
		filter *Filter
		want   bool
	}{
		"none":                    {nil, true},
		"empty":                   {&Filter{}, true},
		"one of several states":   {&Filter{States: []State{StateRunning, StateStopped}}, true},
		"another state":           {&Filter{States: []State{StateRunning}}, false},
		"both fields":             {&Filter{States: []State{StateStopped}, Types: []string{"t3.micro"}}, true},
		"one field of two":        {&Filter{States: []State{StateStopped}, Types: []string{"m5.large"}}, false},
		"one of several values":   {&Filter{Tags: map[string][]string{"env": {"prod", "test"}}}, true},
		"any value":               {&Filter{Tags: map[string][]string{"env": nil}}, true},
		"a tag that is not there": {&Filter{Tags: map[string][]string{"owner": nil}}, false},
		"one tag of two":          {&Filter{Tags: map[string][]string{"env": {"prod"}, "team": {"b"}}}, false},
	} {
		if got := test.filter.Match(i); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
		if test.filter.Match(nil) {
			t.Errorf("%s: it matches no instance at all", name)
		}
	}
}

func TestAnErrorOfUnknownOutcomeDoesNotSayThatNothingWasChanged(t *testing.T) {
	e := &Error{Kind: KindUnavailable, Reason: "R", Message: "EC2 cannot be reached; nothing was changed by this call"}
	unknown := e.UnknownOutcome()
	if !unknown.OutcomeUnknown || unknown.Message != "EC2 cannot be reached" || unknown.Reason != "R" {
		t.Errorf("it is %#v", unknown)
	}
	if e.OutcomeUnknown || e.Message != "EC2 cannot be reached; nothing was changed by this call" {
		t.Errorf("the error itself is %#v", e)
	}
}
