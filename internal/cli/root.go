// Package cli is the command line of a client of the service: the verbs that instanced and
// instancedctl share, their output, errors and exit statuses. It knows the service by its
// contract only.
package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// GroupService is the group of the verbs that run and check the service.
const GroupService = "service"

// New returns the terminal of this process, for the program of the given name.
func New(program string) *Terminal {
	return &Terminal{program: program, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: newEnvironment(os.Environ())}
}

// Run executes the command line of this process and returns the exit status. The first SIGTERM
// or interrupt cancels the context of the command, the second ends the process.
func (t *Terminal) Run(root *cobra.Command) int {
	root.SetArgs(os.Args[1:])
	root.SetIn(t.Stdin)
	help := &rememberingWriter{destination: t.Stdout}
	root.SetOut(help)
	root.SetErr(t.Stderr)
	err := root.ExecuteContext(t.untilSignal())
	if err == nil {
		err = help.err
	}
	switch unwritten, ok := errors.AsType[*fs.PathError](err); {
	case ok && unwritten.Op == "write" && unwritten.Path == os.Stdout.Name():
		err = fmt.Errorf("cannot write to standard output: %w", unwritten.Err)
	case err != nil && !t.accepted:
		err = flagError(err)
	}
	return t.report(err)
}

// rememberingWriter remembers the first error, since cobra ignores the errors of writing its help.
type rememberingWriter struct {
	destination io.Writer
	err         error
}

// Write implements [io.Writer].
func (w *rememberingWriter) Write(p []byte) (int, error) {
	n, err := w.destination.Write(p)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

// NewRoot returns the root of a command line that has the verbs of the client. The program adds
// its help, its own verbs, the group [GroupService], and what sets flags from the environment.
func (t *Terminal) NewRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           t.program,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Allows the flags of a verb before the verb as well.
		TraverseChildren: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return t.noSuchVerb(args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	t.addFlags(root)
	root.AddGroup(
		&cobra.Group{ID: "commands", Title: "Change instances:"},
		&cobra.Group{ID: "questions", Title: "Inspect instances:"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, verb := range verbs {
			verb.GroupID = group
			root.AddCommand(verb)
		}
	}
	add("commands", newStartCommand(t), newStopCommand(t), newRebootCommand(t), newTerminateCommand(t))
	add("questions", newDescribeCommand(t), newWaitCommand(t), newWatchCommand(t), newHistoryCommand(t))
	add(GroupService, newHealthCommand(t), newVerifyCommand(t), newVersionCommand(t))
	root.SetCompletionCommandGroupID(GroupService)
	root.SetHelpCommandGroupID(GroupService)
	root.SetHelpCommand(newHelpCommand(t))
	return root
}

// newHelpCommand is cobra's own, except that an unknown verb is an error, and that a hidden one
// explains itself.
func newHelpCommand(t *Terminal) *cobra.Command {
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
				return t.noSuchVerb(args[0])
			}
			if verb.Hidden {
				return verb.RunE(verb, nil)
			}
			verb.InitDefaultHelpFlag()
			return verb.Help()
		},
	}
}

func (t *Terminal) noSuchVerb(name string) error {
	return Usagef("unknown verb %q; \"%s --help\" lists the verbs", name, t.program)
}

// Examples indents example lines as cobra does in its help. They are written for instanced, and
// name the program of this process instead.
func (t *Terminal) Examples(lines ...string) string {
	return "  " + t.named(strings.Join(lines, "\n  "))
}

// named returns a text about instanced with the name of this program instead.
func (t *Terminal) named(text string) string {
	return strings.ReplaceAll(text, "instanced", t.program)
}

// watchOutput is what verify reads.
func (t *Terminal) watchOutput() string {
	return fmt.Sprintf("what \"%s watch -o json\" prints, one message a line", t.program)
}
