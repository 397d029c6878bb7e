package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func newHistoryCommand(t *Terminal) *cobra.Command {
	var after string
	cmd := &cobra.Command{
		Use:   "history ID... [flags]",
		Short: "Show who did what to instances",
		Long: `History lists the recorded changes of instances, oldest first: when each happened, what
changed, its cause, and how the service learned of it. A change that was not observed but
must have happened is marked "inferred".`,
		Example: t.Examples(
			"instanced history i-1234567890abcdef0",
			"instanced history i-1234567890abcdef0 -o json | jq '.events[] | {at: .occurred_at, who: .cause.principal}'",
		),
		Args:              needIDs,
		ValidArgsFunction: t.completeIDs,
	}
	cmd.Flags().BoolVar(&t.noHeaders, "no-headers", false, "do not print the header line")
	cmd.Flags().StringVar(&after, "after", "", "only changes recorded after this `cursor`")
	return t.verb(cmd, t.briefly, func(ctx context.Context, c *client.Client, args []string) error {
		ids, err := t.ids(ctx, args)
		if err != nil {
			return err
		}
		all := &instancedv1.ListEventsResponse{}
		for page, err := range c.Events(ctx, &instancedv1.ListEventsRequest{InstanceIds: ids, AfterCursor: after, PageSize: 1000}) {
			if err != nil {
				return err
			}
			all.Cursor = page.GetCursor()
			all.Events = append(all.Events, page.GetEvents()...)
		}
		if len(all.GetEvents()) == 0 && after == "" {
			if err := exist(ctx, c, ids); err != nil {
				return err
			}
		}
		if t.JSON() {
			return t.printJSON(all)
		}
		if len(all.GetEvents()) == 0 {
			within := "in the history that is kept"
			if after != "" {
				within = "after that cursor"
			}
			fmt.Fprintf(t.Stderr, "No changes of %s are recorded %s.\n", strings.Join(ids, ", "), within)
			return nil
		}
		tb := t.newTable("TIME", "ID", "CHANGE", "CAUSE", "SOURCE", "REASON").
			giveWay("REASON", "SOURCE", "CAUSE")
		for _, e := range all.GetEvents() {
			tb.add(timeText(e.GetOccurredAt()), e.GetInstance().GetInstanceId(), changeText(e), causeText(e.GetCause()),
				sourceText(e), cmp.Or(e.GetInstance().GetStateReason().GetMessage(), "-"))
		}
		return tb.print()
	})
}

// exist returns an error for instances that do not exist, as opposed to instances that have
// not changed within the retention.
func exist(ctx context.Context, c *client.Client, ids []string) error {
	for _, err := range c.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: ids}, PageSize: 1000}) {
		if err != nil {
			return err
		}
	}
	return nil
}
