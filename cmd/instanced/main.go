// Command instanced serves the lifecycle of EC2 instances, and is the terminal's way
// to use the service.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		// The first signal asks for an orderly end, the second one does not ask.
		cancel(fmt.Errorf("%w by signal: %v", context.Canceled, <-signals))
		<-signals
		os.Exit(exitInterrupted)
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the status to exit with.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	t := &terminal{stdin: stdin, stdout: stdout, stderr: stderr, environ: newEnvironment(os.Environ())}
	root := newRootCommand(t)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !t.accepted {
		err = flagError(err)
	}
	return t.report(err)
}

func newRootCommand(t *terminal) *cobra.Command {
	root := &cobra.Command{
		Use:   "instanced",
		Short: "Start, stop and watch EC2 instances through one service",
		Long: `instanced fronts the lifecycle of EC2 instances: "instanced serve" runs the service,
the other verbs use one that is running.

--server, --output, --timeout, --principal and the flags of serve can also be given in
the environment: --server as INSTANCED_SERVER, --sim-speed as INSTANCED_SIM_SPEED. The
command line wins.

` + exitStatusHelp,
		Example: `  instanced serve
  instanced describe
  instanced start i-1234567890abcdef0 --wait
  instanced watch --from-now
  instanced describe -o json | jq -r '.instances[].instance_id'`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// So that the flags of the verbs may stand before the verb as well.
		TraverseChildren: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no verb %q; \"instanced --help\" lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.environ.unknown(append(cmd.Root().Commands(), cmd.Root())...); err != nil && cmd.Name() != cobra.ShellCompRequestCmd {
				return err
			}
			return t.environ.apply(cmd)
		},
	}
	t.addFlags(root)

	root.AddGroup(
		&cobra.Group{ID: "commands", Title: "Change instances:"},
		&cobra.Group{ID: "questions", Title: "Look at instances:"},
		&cobra.Group{ID: "service", Title: "The service:"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, verb := range verbs {
			verb.GroupID = group
			root.AddCommand(verb)
		}
	}
	add("commands", newStartCommand(t), newStopCommand(t), newRebootCommand(t), newTerminateCommand(t))
	add("questions", newDescribeCommand(t), newWaitCommand(t), newWatchCommand(t), newHistoryCommand(t))
	add("service", newServeCommand(t), newDoctorCommand(t), newVerifyCommand(t), newVersionCommand(t))
	root.SetCompletionCommandGroupID("service")
	root.SetHelpCommandGroupID("service")
	return root
}

// examples indents the lines of an example as cobra's help does its own.
func examples(lines ...string) string {
	return "  " + strings.Join(lines, "\n  ")
}
