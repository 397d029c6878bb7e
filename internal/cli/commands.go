package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// commandFlags are the flags that all verbs share that change instances.
type commandFlags struct {
	dryRun      bool
	perInstance bool
	token       string
	wait        bool
	verbose     bool
}

func (f *commandFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only check whether the request would be permitted")
	cmd.Flags().BoolVar(&f.perInstance, "per-instance", false, "execute what is possible instead of rejecting the whole request")
	cmd.Flags().StringVar(&f.token, "client-token", "", "idempotency `token`: a repeated request with it gets the first response (default: a new one)")
}

func (f *commandFlags) addWait(cmd *cobra.Command, state string) {
	cmd.Flags().BoolVar(&f.wait, "wait", false, "show progress until every instance is "+state)
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "with --wait, print a line for each change even for many instances")
}

func (f *commandFlags) failureMode() instancedv1.FailureMode {
	if f.perInstance {
		return instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE
	}
	return instancedv1.FailureMode_FAILURE_MODE_WHOLE_CALL
}

// answer is what the responses of all four verbs have in common.
type answer struct {
	message  proto.Message
	changes  []*instancedv1.InstanceStateChange
	failures []*instancedv1.InstanceFailure
	cursor   string
}

// command completes a verb that changes instances. call sends the request; wanted is the
// state that --wait waits for.
func (t *Terminal) command(cmd *cobra.Command, flags *commandFlags, wanted string, call func(ctx context.Context, c *client.Client, ids []string) (*answer, error)) *cobra.Command {
	flags.add(cmd)
	t.addTableFlags(cmd)
	cmd.Args = needIDs
	cmd.ValidArgsFunction = t.completeIDs
	within := func() time.Duration {
		if flags.wait {
			return cmp.Or(t.Timeout, defaultWait) + waitGrace
		}
		return cmp.Or(t.Timeout, defaultTimeout)
	}
	return t.verb(cmd, within, func(ctx context.Context, c *client.Client, args []string) error {
		began := time.Now()
		ids, err := t.ids(ctx, args)
		if err != nil {
			return err
		}
		// Generated here and not by the client library, so that error messages can name it.
		flags.token = cmp.Or(flags.token, rand.Text())
		got, err := call(ctx, c, ids)
		switch {
		case err != nil:
			if e, ok := errors.AsType[*client.Error](err); ok && e.OutcomeUnknown {
				return &unknownOutcome{cause: e, ids: ids, token: flags.token}
			}
			return err
		case flags.dryRun:
			return t.printPermitted(got)
		case flags.wait:
			err := t.await(ctx, c, got, wanted, waitOptions{began: began, verbose: flags.verbose})
			if err != nil && errors.Is(ctx.Err(), context.Canceled) {
				return interruptedWait(t.program, cmd.Name(), wanted, got)
			}
			return err
		default:
			return t.printAnswer(got)
		}
	})
}

func newStartCommand(t *Terminal) *cobra.Command {
	var flags commandFlags
	var additionalInfo string
	cmd := &cobra.Command{
		Use:   "start ID... [flags]",
		Short: "Start stopped instances",
		Long: `Start starts stopped EBS-backed instances. Starting a running one changes nothing and is
not an error. Each start is charged for at least a minute.`,
		Example: t.Examples(
			"instanced start i-1234567890abcdef0",
			"instanced start i-1234567890abcdef0 --wait",
			"instanced start --per-instance i-1234567890abcdef0 i-0598c7d356eba48d7",
			"instanced describe --state stopped -o json | jq -r '.instances[].instance_id' | instanced start -",
		),
	}
	cmd.Flags().StringVar(&additionalInfo, "additional-info", "", "`text` reserved by EC2, passed on unchanged")
	flags.addWait(cmd, "running")
	return t.command(cmd, &flags, "running", func(ctx context.Context, c *client.Client, ids []string) (*answer, error) {
		resp, err := c.Start(ctx, &instancedv1.StartInstancesRequest{
			InstanceIds: ids, AdditionalInfo: additionalInfo,
			DryRun: flags.dryRun, ClientToken: flags.token, FailureMode: flags.failureMode(),
		})
		return &answer{resp, resp.GetStartingInstances(), resp.GetFailedInstances(), resp.GetCursor()}, err
	})
}

func newStopCommand(t *Terminal) *cobra.Command {
	var flags commandFlags
	var hibernate, force, skip bool
	cmd := &cobra.Command{
		Use:   "stop ID... [flags]",
		Short: "Stop or hibernate instances",
		Long: `Stop stops EBS-backed instances. The contents of RAM are lost unless --hibernate is given
and the instance was launched with hibernation enabled.`,
		Example: t.Examples(
			"instanced stop i-1234567890abcdef0",
			"instanced stop i-1234567890abcdef0 --hibernate --wait",
		),
	}
	cmd.Flags().BoolVar(&hibernate, "hibernate", false, "keep the contents of RAM")
	cmd.Flags().BoolVar(&force, "force", false, "force the stop if the operating system does not shut down in time")
	cmd.Flags().BoolVar(&skip, "skip-os-shutdown", false, "skip the graceful shutdown of the operating system")
	flags.addWait(cmd, "stopped")
	return t.command(cmd, &flags, "stopped", func(ctx context.Context, c *client.Client, ids []string) (*answer, error) {
		resp, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{
			InstanceIds: ids, Hibernate: hibernate, Force: force, SkipOsShutdown: skip,
			DryRun: flags.dryRun, ClientToken: flags.token, FailureMode: flags.failureMode(),
		})
		return &answer{resp, resp.GetStoppingInstances(), resp.GetFailedInstances(), resp.GetCursor()}, err
	})
}

func newRebootCommand(t *Terminal) *cobra.Command {
	var flags commandFlags
	cmd := &cobra.Command{
		Use:     "reboot ID... [flags]",
		Short:   "Ask the operating systems of instances to reboot",
		Long:    `Reboot asks the operating systems to reboot. The instances stay running throughout.`,
		Example: t.Examples("instanced reboot i-1234567890abcdef0"),
	}
	return t.command(cmd, &flags, "", func(ctx context.Context, c *client.Client, ids []string) (*answer, error) {
		resp, err := c.Reboot(ctx, &instancedv1.RebootInstancesRequest{
			InstanceIds: ids,
			DryRun:      flags.dryRun, ClientToken: flags.token, FailureMode: flags.failureMode(),
		})
		return &answer{resp, resp.GetRebootingInstances(), resp.GetFailedInstances(), resp.GetCursor()}, err
	})
}

func newTerminateCommand(t *Terminal) *cobra.Command {
	var flags commandFlags
	var force, skip bool
	cmd := &cobra.Command{
		Use:   "terminate ID... [flags]",
		Short: "Terminate instances permanently",
		Long:  `Terminate terminates instances permanently. It cannot be undone and asks for no confirmation.`,
		Example: t.Examples(
			"instanced terminate i-1234567890abcdef0 --dry-run",
			"instanced terminate i-1234567890abcdef0 --wait",
		),
	}
	cmd.Flags().BoolVar(&force, "force", false, "force the termination if the operating system does not shut down in time")
	cmd.Flags().BoolVar(&skip, "skip-os-shutdown", false, "skip the graceful shutdown of the operating system")
	flags.addWait(cmd, "terminated")
	return t.command(cmd, &flags, "terminated", func(ctx context.Context, c *client.Client, ids []string) (*answer, error) {
		resp, err := c.Terminate(ctx, &instancedv1.TerminateInstancesRequest{
			InstanceIds: ids, Force: force, SkipOsShutdown: skip,
			DryRun: flags.dryRun, ClientToken: flags.token, FailureMode: flags.failureMode(),
		})
		return &answer{resp, resp.GetTerminatingInstances(), resp.GetFailedInstances(), resp.GetCursor()}, err
	})
}

// interruptedWait is the result of an interrupted wait, whose command was accepted.
func interruptedWait(program, verb, wanted string, got *answer) *verdict {
	const maxNamed = 5
	v := &verdict{status: ExitInterrupted}
	if len(got.changes) == 0 {
		v.lines = []string{"interrupted"}
		return v
	}
	ids := make([]string, 0, maxNamed)
	for _, change := range got.changes[:min(len(got.changes), maxNamed)] {
		ids = append(ids, change.GetInstanceId())
	}
	if len(got.changes) > maxNamed {
		ids = append(ids, "...")
	}
	v.lines = []string{
		fmt.Sprintf("stopped waiting; the %s of %s continues", verb, Counted(len(got.changes), "instance")),
		fmt.Sprintf("  `%s wait %s --for %s --after %s` resumes the wait", program, strings.Join(ids, " "), wanted, got.cursor),
	}
	return v
}

// printPermitted reports that a dry run succeeded.
func (t *Terminal) printPermitted(got *answer) error {
	if t.JSON() {
		return t.printJSON(got.message)
	}
	_, err := fmt.Fprintln(t.Stdout, "The request would be permitted. Nothing was changed.")
	return err
}

// printAnswer prints the response to a command and fails if an instance was rejected.
func (t *Terminal) printAnswer(got *answer) error {
	if t.JSON() {
		return ending(t.printJSON(got.message), refusals(got))
	}
	if len(got.changes) > 0 {
		tb := t.newTable("ID", "PREVIOUS", "CURRENT")
		for _, change := range got.changes {
			tb.add(change.GetInstanceId(), stateName(change.GetPreviousState()), stateName(change.GetCurrentState()))
		}
		if err := tb.print(); err != nil {
			return err
		}
	}
	return ending(nil, refusals(got))
}

// refusals is the verdict on a command that was rejected for some of its instances.
func refusals(got *answer) *verdict {
	if len(got.failures) == 0 {
		return &verdict{}
	}
	return &verdict{status: ExitRefused, lines: failureLines(got.failures)}
}

func failureLines(failures []*instancedv1.InstanceFailure) []string {
	lines := []string{fmt.Sprintf("rejected for %s:", Counted(len(failures), "instance"))}
	for _, f := range failures {
		line := fmt.Sprintf("  %s: %s", f.GetInstanceId(), f.GetMessage())
		if code := f.GetEc2ErrorCode(); code != "" {
			line += " (" + code + ")"
		}
		lines = append(lines, line)
	}
	return lines
}

// Counted returns a number with its noun, such as "1 instance" or "2 instances".
func Counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
