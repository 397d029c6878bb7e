package cli

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func newWaitCommand(t *Terminal) *cobra.Command {
	var states []instancedv1.InstanceStateName
	var after string
	var firstFailure bool
	cmd := &cobra.Command{
		Use:   "wait ID... --for STATE [flags]",
		Short: "Wait until instances have reached a state",
		Long: `Wait ends when every instance has reached one of the wanted states or no longer can, or
after --timeout (default 5m, at most 1h).

With --after and the cursor of a command's response, changes since then count too: a start
that fell back to stopped ends the wait at once.

A wait survives restarts of the service. If the service is unreachable from the start, it
gives up after a few attempts; with --after, after --timeout.`,
		Example: t.Examples(
			"instanced wait i-1234567890abcdef0 --for running",
			"instanced wait i-1234567890abcdef0 --for stopped --for terminated --timeout 10m",
			"instanced wait i-1234567890abcdef0 --for running --after \"$(instanced start i-1234567890abcdef0 -o json | jq -r .cursor)\"",
		),
		Args:              needIDs,
		ValidArgsFunction: t.completeIDs,
	}
	bindList(cmd.Flags(), &states, "for", "state", "the wanted state; may be repeated for alternatives", parseState, "running")
	cmd.Flags().StringVar(&after, "after", "", "also count changes after this `cursor`")
	cmd.Flags().BoolVar(&firstFailure, "first-failure", false, "end as soon as one instance can no longer reach the state")
	CompleteWords(cmd, "for", stateWords()...)
	t.addTableFlags(cmd)
	within := func() time.Duration { return cmp.Or(t.Timeout, defaultWait) + waitGrace }
	return t.verb(cmd, within, func(ctx context.Context, c *client.Client, args []string) error {
		ids, err := t.ids(ctx, args)
		if err != nil {
			return err
		}
		until := instancedv1.WaitUntil_WAIT_UNTIL_ALL_SETTLED
		if firstFailure {
			until = instancedv1.WaitUntil_WAIT_UNTIL_FIRST_FAILURE
		}
		t.away.expected.Store(true)
		waited, err := c.Wait(ctx, &instancedv1.WaitInstancesRequest{
			InstanceIds: ids, States: states, AfterCursor: after, Until: until,
			Timeout: durationpb.New(cmp.Or(t.Timeout, defaultWait)),
		})
		if err != nil {
			return err
		}
		if t.JSON() {
			return ending(t.printJSON(waited), unreached(waited.GetResults()))
		}
		tb := t.newTable("ID", "OUTCOME", "STATE", "PUBLIC IP", "REASON").giveWay("REASON", "PUBLIC IP")
		for _, r := range waited.GetResults() {
			reason := r.GetStateReason().GetMessage()
			tb.add(r.GetInstanceId(), outcomeText(r.GetOutcome()), stateName(r.GetInstance().GetState()),
				cmp.Or(r.GetInstance().GetPublicIpAddress(), "-"), cmp.Or(reason, "-"))
		}
		return ending(tb.print(), unreached(waited.GetResults()))
	})
}

func outcomeText(outcome instancedv1.WaitOutcome) string {
	switch outcome {
	case instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
		return "reached"
	case instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE:
		return "unreachable"
	case instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT:
		return "timed out"
	case instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED, instancedv1.WaitOutcome_WAIT_OUTCOME_UNSPECIFIED:
		return "unsettled"
	}
	return outcome.String()
}

// unreached is the verdict on a wait after which not every instance is in a wanted state. An
// instance that can no longer reach it outweighs a timeout.
func unreached(results []*instancedv1.WaitResult) *verdict {
	v := &verdict{}
	for _, r := range results {
		state, why, status := stateName(r.GetInstance().GetState()), "", ExitNotReached
		switch r.GetOutcome() {
		case instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
			continue
		case instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT:
			why, status = "the wait timed out", ExitTimedOut
		case instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED, instancedv1.WaitOutcome_WAIT_OUTCOME_UNSPECIFIED:
			why = "the wait ended first"
		case instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE:
			why = "it can no longer reach the wanted state"
			if reason := r.GetStateReason().GetMessage(); reason != "" {
				why += ": " + reason
			}
		}
		if v.status != ExitNotReached {
			v.status = status
		}
		v.lines = append(v.lines, fmt.Sprintf("%s is %s; %s", r.GetInstanceId(), state, why))
	}
	return v
}
