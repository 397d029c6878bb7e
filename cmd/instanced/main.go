// Command instanced serves the lifecycle of EC2 instances, and is the terminal's way
// to use the service.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	t := &terminal{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: newEnvironment(os.Environ())}
	os.Exit(t.run(t.untilSignal(), os.Args[1:]))
}

// untilSignal returns a context that ends with the first signal that asks for an orderly
// end; the second one does not ask. A hangup reloads where there is something to reload,
// and means nothing to a process that was started to outlive it, as nohup does.
func (t *terminal) untilSignal() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	end := func(s os.Signal) {
		if ctx.Err() != nil {
			os.Exit(exitInterrupted)
		}
		cancel(fmt.Errorf("%w by signal: %v", context.Canceled, s))
	}
	ends := make(chan os.Signal, 2)
	signal.Notify(ends, os.Interrupt, syscall.SIGTERM)
	// Hangups wait for a reload that takes long, in a channel of their own: however many
	// there are, they must not hold up the signals that end the process.
	hangups := make(chan os.Signal, 1)
	outlives := signal.Ignored(syscall.SIGHUP)
	signal.Notify(hangups, syscall.SIGHUP)
	closed := terminalClosed()
	go func() {
		for s := range ends {
			end(s)
		}
	}()
	go func() {
		for s := range hangups {
			reload := t.onHangup.Load()
			switch {
			case !outlives && (reload == nil || closed()):
				end(s)
			case reload != nil:
				(*reload)()
			}
		}
	}()
	return ctx
}

// terminalClosed returns a function that reports whether a terminal that this process
// was started on has gone away since: the other reason for a hangup.
func terminalClosed() func() bool {
	var terminals []int
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if fd := int(f.Fd()); isTTY(fd) {
			terminals = append(terminals, fd)
		}
	}
	return func() bool {
		return slices.ContainsFunc(terminals, func(fd int) bool { return !isTTY(fd) })
	}
}

func isTTY(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// run executes one command line and returns the status to exit with.
func (t *terminal) run(ctx context.Context, args []string) int {
	root := newRootCommand(t)
	root.SetArgs(args)
	root.SetIn(t.stdin)
	root.SetOut(t.stdout)
	root.SetErr(t.stderr)
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
				return noSuchVerb(args[0])
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
	add("service", newServeCommand(t), newDoctorCommand(t), newVerifyCommand(t), newUpgradeCommand(t), newVersionCommand(t))
	root.SetCompletionCommandGroupID("service")
	root.SetHelpCommandGroupID("service")
	root.SetHelpCommand(newHelpCommand())
	return root
}

// newHelpCommand is cobra's own, except that a verb that does not exist is an error.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "Help about any verb",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) (verbs []cobra.Completion, _ cobra.ShellCompDirective) {
			for _, verb := range cmd.Root().Commands() {
				if verb.IsAvailableCommand() {
					verbs = append(verbs, cobra.CompletionWithDesc(verb.Name(), verb.Short))
				}
			}
			return verbs, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noSuchVerb(args[0])
			}
			verb.InitDefaultHelpFlag()
			return verb.Help()
		},
	}
}

func noSuchVerb(name string) error {
	return usagef("there is no verb %q; \"instanced --help\" lists them", name)
}

// examples indents the lines of an example as cobra's help does its own.
func examples(lines ...string) string {
	return "  " + strings.Join(lines, "\n  ")
}
