package ec2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// Limit is a token bucket: it holds at most Capacity tokens and gains Refill a second.
type Limit = dispatch.Limit

// ActionLimits are the buckets of one action: Requests has a token for each call,
// Instances one for each instance of a call. Nil means the documented one.
type ActionLimits struct {
	Requests  *Limit `json:"requests"`
	Instances *Limit `json:"instances"`
}

// Limits are an account's token buckets in one Region, where they differ from the documented ones.
// The zero value is an account without raised limits.
type Limits struct {
	Start ActionLimits
	// Stop has the request bucket of RebootInstances too.
	Stop      ActionLimits
	Terminate ActionLimits
	// Describe has no bucket of instances.
	Describe ActionLimits
}

// documented are the buckets of every account. Source: EC2 Developer Guide, "Request
// throttling for the Amazon EC2 API".
var documented = Limits{
	Start:     ActionLimits{Requests: &Limit{Capacity: 5, Refill: 2}, Instances: &Limit{Capacity: 1000, Refill: 2}},
	Stop:      ActionLimits{Requests: &Limit{Capacity: 50, Refill: 5}, Instances: &Limit{Capacity: 1000, Refill: 20}},
	Terminate: ActionLimits{Requests: &Limit{Capacity: 100, Refill: 5}, Instances: &Limit{Capacity: 1000, Refill: 20}},
	Describe:  ActionLimits{Requests: &Limit{Capacity: 100, Refill: 20}},
}

// withDefaults fills in the documented limits.
func (l Limits) withDefaults() Limits {
	complete := func(own, known ActionLimits) ActionLimits {
		if own.Requests == nil {
			own.Requests = known.Requests
		}
		if own.Instances == nil {
			own.Instances = known.Instances
		}
		return own
	}
	return Limits{
		Start:     complete(l.Start, documented.Start),
		Stop:      complete(l.Stop, documented.Stop),
		Terminate: complete(l.Terminate, documented.Terminate),
		Describe:  complete(l.Describe, documented.Describe),
	}
}

// actionDescribe names the read beside the four verbs.
const actionDescribe instance.Verb = "DescribeInstances"

// actions returns the limits by EC2's names of the actions.
func (l *Limits) actions() map[instance.Verb]*ActionLimits {
	return map[instance.Verb]*ActionLimits{
		instance.VerbStart:     &l.Start,
		instance.VerbStop:      &l.Stop,
		instance.VerbTerminate: &l.Terminate,
		actionDescribe:         &l.Describe,
	}
}

// ParseLimits reads limits from JSON such as
//
//	{"StartInstances": {"requests": {"capacity": 20, "refill": 8}, "instances": {"capacity": 2000, "refill": 10}}}
//
// What is left out is as documented. The actions are StartInstances, StopInstances,
// TerminateInstances and DescribeInstances. The error names all that is wrong.
func ParseLimits(data []byte) (Limits, error) {
	var named map[instance.Verb]ActionLimits
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&named); err != nil {
		return Limits{}, fmt.Errorf("limits are not readable: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Limits{}, errors.New("limits are not readable: something follows them")
	}
	var limits Limits
	actions := limits.actions()
	var wrong []string
	for _, action := range slices.Sorted(maps.Keys(named)) {
		own := named[action]
		target, known := actions[action]
		switch {
		case action == instance.VerbReboot:
			wrong = append(wrong, "RebootInstances shares the requests of StopInstances: set those")
			continue
		case !known:
			wrong = append(wrong, fmt.Sprintf("%.40q is not an action: want one of StartInstances, StopInstances, TerminateInstances, DescribeInstances", action))
			continue
		case action == actionDescribe && own.Instances != nil:
			wrong = append(wrong, "DescribeInstances has no bucket of instances")
		}
		for name, l := range map[string]*Limit{"requests": own.Requests, "instances": own.Instances} {
			if l != nil && !(l.Capacity >= 1 && l.Refill > 0 && l.Capacity <= 1e9 && l.Refill <= 1e9) {
				wrong = append(wrong, fmt.Sprintf("%s.%s has capacity %v and refill %v: want a capacity of at least 1 and a refill above 0", action, name, l.Capacity, l.Refill))
			}
		}
		*target = own
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return Limits{}, errors.New("limits are wrong: " + strings.Join(wrong, "; "))
	}
	return limits, nil
}
