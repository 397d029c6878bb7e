// Command instanced is the service for the lifecycle of EC2 instances, and its command-line
// client.
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

// untilSignal returns a context that is canceled by the first SIGTERM or interrupt; the second
// exits at once. A hangup reloads if there is something to reload, and is ignored if the
// process was started with it ignored, as by nohup.
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
	// Hangups have a channel of their own, so that a slow reload never delays the signals that
	// end the process.
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

// terminalClosed returns a function that reports whether the terminal that the process was
// started on has been closed since, which also causes a hangup.
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

// run executes one command line and returns the exit status.
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
		Long: `instanced manages the lifecycle of EC2 instances. "instanced serve" runs the service; the
other verbs are its client.

--server, --output, --timeout, --principal and the flags of serve can also be set by
environment variables: --server by INSTANCED_SERVER, --sim-speed by INSTANCED_SIM_SPEED. The
command line takes precedence. The flags of serve can also be set in a file: --config.

` + exitStatusHelp,
		Example: `  instanced serve
  instanced describe
  instanced start i-1234567890abcdef0 --wait
  instanced watch --from-now
  instanced describe -o json | jq -r '.instances[].instance_id'`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Allows the flags of a verb before the verb as well.
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
			return t.applySettings(cmd)
		},
	}
	t.addFlags(root)

	root.AddGroup(
		&cobra.Group{ID: "commands", Title: "Change instances:"},
		&cobra.Group{ID: "questions", Title: "Inspect instances:"},
		&cobra.Group{ID: "service", Title: "Run and check the service:"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, verb := range verbs {
			verb.GroupID = group
			root.AddCommand(verb)
		}
	}
	add("commands", newStartCommand(t), newStopCommand(t), newRebootCommand(t), newTerminateCommand(t))
	add("questions", newDescribeCommand(t), newWaitCommand(t), newWatchCommand(t), newHistoryCommand(t))
	add("service", newServeCommand(t), newConfigCommand(t), newDoctorCommand(t), newVerifyCommand(t), newUpgradeCommand(t), newVersionCommand(t))
	root.SetCompletionCommandGroupID("service")
	root.SetHelpCommandGroupID("service")
	root.SetHelpCommand(newHelpCommand())
	return root
}

// newHelpCommand is cobra's own, except that an unknown verb is an error.
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
	return usagef("unknown verb %q; \"instanced --help\" lists the verbs", name)
}

// examples indents example lines as cobra does in its help.
func examples(lines ...string) string {
	return "  " + strings.Join(lines, "\n  ")
}
