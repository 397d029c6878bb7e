package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// filterFlags select instances.
type filterFlags struct {
	states   []instancedv1.InstanceStateName
	tags     []string
	types    []string
	zones    []string
	regions  []string
	accounts []string
}

func (f *filterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	bindList(flags, &f.states, "state", "states", "states, such as stopped; may be repeated", parseState)
	flags.StringArrayVar(&f.tags, "tag", nil, "tag as `KEY=VALUE`, or KEY for any value; may be repeated: values of one key are alternatives, several keys must all match")
	bindList(flags, &f.types, "type", "types", "instance types, such as t3.micro; may be repeated", someWord("an instance type, such as t3.micro"))
	bindList(flags, &f.zones, "zone", "zones", "Availability Zones, such as us-east-1a; may be repeated", someWord("an Availability Zone, such as us-east-1a"))
	bindList(flags, &f.regions, "region", "regions", "Regions, such as us-east-1; may be repeated", someWord("a Region, such as us-east-1"))
	bindList(flags, &f.accounts, "account", "accounts", "12-digit AWS account ids; may be repeated", parseAccount)
	CompleteWords(cmd, "state", stateWords()...)
}

// parseAccount accepts an AWS account id.
func parseAccount(word string) (string, error) {
	if len(word) != 12 || strings.Trim(word, "0123456789") != "" {
		return "", fmt.Errorf("%q is not a 12-digit AWS account id, such as 123456789012", word)
	}
	return word, nil
}

// filter returns the filter of the flags and the ids.
func (f *filterFlags) filter(ids []string) (*instancedv1.InstanceFilter, error) {
	filter := &instancedv1.InstanceFilter{
		InstanceIds: ids, States: f.states, InstanceTypes: f.types,
		AvailabilityZones: f.zones, Regions: f.regions, AccountIds: f.accounts,
	}
	for _, tag := range f.tags {
		key, value, hasValue := strings.Cut(tag, "=")
		if key == "" {
			return nil, Usagef("--tag: %q is neither KEY=VALUE nor KEY", tag)
		}
		i := slices.IndexFunc(filter.GetTags(), func(t *instancedv1.TagFilter) bool { return t.GetKey() == key })
		if i < 0 {
			i = len(filter.GetTags())
			filter.Tags = append(filter.Tags, &instancedv1.TagFilter{Key: key})
		}
		if hasValue {
			filter.Tags[i].Values = append(filter.Tags[i].Values, value)
		}
	}
	return filter, nil
}

func newDescribeCommand(t *Terminal) *cobra.Command {
	var selection filterFlags
	cmd := &cobra.Command{
		Use:   "describe [ID...] [flags]",
		Short: "List instances",
		Long: `Describe lists instances, all of them unless ids or filters are given. Values of one
filter are alternatives; an instance must match every filter.`,
		Example: t.Examples(
			"instanced describe",
			"instanced describe i-1234567890abcdef0",
			"instanced describe --state stopped --tag team=payments --type t3.micro --zone us-east-1a",
			"instanced describe -o json | jq -r '.instances[] | [.instance_id, .public_ip_address] | @tsv'",
		),
		ValidArgsFunction: t.completeIDs,
	}
	selection.add(cmd)
	t.addTableFlags(cmd)
	return t.verb(cmd, t.briefly, func(ctx context.Context, c *client.Client, args []string) error {
		ids, err := t.ids(ctx, args)
		if err != nil {
			return err
		}
		filter, err := selection.filter(ids)
		if err != nil {
			return err
		}
		// One document for all pages, with the cursor of the first page: a watch after it
		// sees the changes made while the other pages were read.
		all := &instancedv1.DescribeInstancesResponse{}
		for page, err := range c.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: filter, PageSize: 1000}) {
			if err != nil {
				return err
			}
			if all.GetCursor() == "" {
				all.Cursor, all.LastReconciled = page.GetCursor(), page.GetLastReconciled()
			}
			all.Instances = append(all.Instances, page.GetInstances()...)
		}
		if t.JSON() {
			return t.printJSON(all)
		}
		if len(all.GetInstances()) == 0 {
			fmt.Fprintln(t.Stderr, "No instance matches.")
			return nil
		}
		tb := t.newTable("ID", "NAME", "STATE", "TYPE", "ZONE", "PUBLIC IP", "REASON").
			giveWay("REASON", "ZONE", "TYPE", "NAME", "PUBLIC IP")
		for _, i := range all.GetInstances() {
			tb.add(i.GetInstanceId(), cmp.Or(i.GetTags()["Name"], "-"), stateName(i.GetState()), i.GetInstanceType(),
				i.GetAvailabilityZone(), cmp.Or(i.GetPublicIpAddress(), "-"), cmp.Or(reasonText(i), "-"))
		}
		return tb.print()
	})
}
