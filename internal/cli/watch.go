package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// unseen are the ids of a watch about which the service has sent nothing yet.
type unseen map[string]bool

func newUnseen(ids []string) unseen {
	u := make(unseen, len(ids))
	for _, id := range ids {
		u[id] = true
	}
	return u
}

// take removes the instances of a snapshot.
func (u unseen) take(snapshot *instancedv1.Snapshot) {
	for _, i := range snapshot.GetInstances() {
		delete(u, i.GetInstanceId())
	}
}

// look asks the service which of the instances exist.
func (u unseen) look(ctx context.Context, c *client.Client) error {
	if len(u) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(u))
	for page, err := range c.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: ids}, PageSize: 1000}) {
		if e, ok := errors.AsType[*client.Error](err); ok && e.Code == codes.NotFound {
			unknown := newUnseen(e.InstanceIDs)
			maps.DeleteFunc(u, func(id string, _ bool) bool { return !unknown[id] })
			return nil
		}
		if err != nil {
			return err
		}
		for _, i := range page.GetInstances() {
			delete(u, i.GetInstanceId())
		}
	}
	return nil
}

// printUnseen says, once, which of the watched instances do not exist.
func (t *Terminal) printUnseen(u unseen) {
	const maxNamed = 5
	if len(u) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(u))
	clear(u)
	more := ""
	if len(ids) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(ids)-maxNamed)
	}
	fmt.Fprintf(t.Stderr, "No such instance: %s%s. Watching in case it appears.\n", strings.Join(ids[:min(len(ids), maxNamed)], ", "), more)
}

func newWatchCommand(t *Terminal) *cobra.Command {
	var selection filterFlags
	var after, unusable string
	var fromNow bool
	var count int
	cmd := &cobra.Command{
		Use:   "watch [ID...] [flags]",
		Short: "Print changes as they happen",
		Long: `Watch prints the current instances, and then a line for each change: when it happened, the
states before and after, its cause, and how the service learned of it.

It runs until interrupted, and resumes after a broken connection without missing or
repeating a change. If that is impossible because the history is no longer kept, it says
why and starts over with the current instances; with --after or --from-now it fails instead.
If the first connection fails, it gives up after a few attempts.

With -o json each line is one WatchInstancesResponse. To resume later, give --after the last
cursor that is not empty.`,
		Example: t.Examples(
			"instanced watch",
			"instanced watch i-1234567890abcdef0 --from-now",
			"instanced watch --tag team=payments --count 1",
			"instanced watch -o json | jq --unbuffered -r '.events.events[]? | .instance.instance_id'",
		),
		ValidArgsFunction: t.completeIDs,
	}
	selection.add(cmd)
	cmd.Flags().BoolVar(&fromNow, "from-now", false, "do not print the current instances")
	cmd.Flags().StringVar(&after, "after", "", "resume after this `cursor`")
	Bind(cmd.Flags(), &unusable, "on-unusable-cursor", "fail|snapshot", "fail",
		"what --after and --from-now do if changes would be missed", OneOf("fail", "snapshot"))
	CompleteWords(cmd, "on-unusable-cursor", "fail", "snapshot")
	Bind(cmd.Flags(), &count, "count", "number", "0", "exit after this many changes; 0 means never", ParseCount(0))
	within := func() time.Duration { return t.Timeout }
	return t.verb(cmd, within, func(ctx context.Context, c *client.Client, args []string) error {
		if fromNow && after != "" {
			return Usagef("--from-now and --after are mutually exclusive")
		}
		ids, err := t.ids(ctx, args)
		if err != nil {
			return err
		}
		filter, err := selection.filter(ids)
		if err != nil {
			return err
		}
		// Unspecified leaves it to the client: a watch that started with a snapshot starts over
		// with one, any other fails.
		policy := instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_UNSPECIFIED
		if unusable == "snapshot" {
			policy = instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT
		}
		t.away.expected.Store(true)
		left, impaired := count, ""
		filtered := !proto.Equal(filter, &instancedv1.InstanceFilter{InstanceIds: ids})
		unseen := newUnseen(ids)
		if fromNow || after != "" {
			// No snapshot will tell which exist.
			if err := unseen.look(ctx, c); err != nil {
				return err
			}
			t.printUnseen(unseen)
		}
		for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{
			AfterCursor: after, FromNow: fromNow, Filter: filter, OnUnusableCursor: policy,
		}) {
			if errors.Is(err, context.Canceled) || errors.Is(ctx.Err(), context.Canceled) {
				return nil
			}
			if ctx.Err() != nil {
				return &verdict{status: ExitTimedOut, lines: []string{fmt.Sprintf("watched for %v", t.Timeout)}}
			}
			if err != nil {
				return err
			}
			if events := msg.GetEvents().GetEvents(); count > 0 && len(events) > 0 {
				if len(events) > left {
					msg.GetEvents().Events = events[:left]
					// It follows the part that is left out.
					msg.Cursor = ""
				}
				left -= len(msg.GetEvents().GetEvents())
			}
			if progress := msg.GetProgress(); progress != nil && !t.JSON() {
				impaired = t.printImpairment(progress.GetImpairment(), impaired)
			}
			if err := t.printMessage(msg, filtered); err != nil {
				return err
			}
			if snapshot := msg.GetSnapshot(); snapshot != nil {
				unseen.take(snapshot)
				if snapshot.GetLast() {
					t.printUnseen(unseen)
				}
			}
			if count > 0 && left == 0 {
				return nil
			}
		}
		return nil
	})
}

// printImpairment says why no changes arrive, once, and when that is over. It returns the
// reason that was printed last.
func (t *Terminal) printImpairment(now *instancedv1.Impairment, told string) string {
	reason := now.GetReason()
	switch reason {
	case told:
	case "":
		fmt.Fprintln(t.Stderr, "Changes are recorded again.")
	default:
		fmt.Fprintf(t.Stderr, "Changes are not recorded at the moment. %s: %s\n", reason, now.GetMessage())
	}
	return reason
}

// printMessage prints one message of a watch. filtered is whether the watch selects by more
// than ids, so that instances may start and stop matching.
func (t *Terminal) printMessage(msg *instancedv1.WatchInstancesResponse, filtered bool) error {
	if t.JSON() {
		return t.printJSONLine(msg)
	}
	if snapshot := msg.GetSnapshot(); snapshot != nil {
		if snapshot.GetFirst() && snapshot.GetReason() != instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED {
			fmt.Fprintf(t.Stderr, "Cannot resume after the cursor (%s). The current instances follow.\n",
				word(snapshot.GetReason().String(), "UNUSABLE_CURSOR_REASON_"))
		}
		for _, i := range snapshot.GetInstances() {
			if err := t.printChange("-", i.GetInstanceId(), stateName(i.GetState()), i.GetTags()["Name"]); err != nil {
				return err
			}
		}
	}
	for _, e := range msg.GetEvents().GetEvents() {
		cause := causeText(e.GetCause()) + "  (" + sourceText(e) + ")"
		if e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_LEFT && e.GetType() != instancedv1.EventType_EVENT_TYPE_REMOVED {
			cause += "  no longer matches"
		}
		if filtered && e.GetMatch() == instancedv1.EventMatch_EVENT_MATCH_ENTERED && e.GetType() != instancedv1.EventType_EVENT_TYPE_ADDED {
			cause += "  now matches"
		}
		if reason := e.GetInstance().GetStateReason().GetMessage(); reason != "" {
			cause += "  " + reason
		}
		if err := t.printChange(timeText(e.GetOccurredAt()), e.GetInstance().GetInstanceId(), changeText(e), cause); err != nil {
			return err
		}
	}
	return nil
}

// printChange prints one line of a watch. Its columns have fixed widths, since later lines are
// not known yet.
func (t *Terminal) printChange(at, id, change, rest string) error {
	line := fmt.Sprintf("%-24s  %-19s  %-24s  %s", at, id, change, rest)
	_, err := fmt.Fprintln(t.Stdout, strings.TrimRight(line, " "))
	return err
}
