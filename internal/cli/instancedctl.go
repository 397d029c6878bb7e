package cli

import (
	"os"

	"github.com/spf13/cobra"
)

// serviceVerbs are the verbs of instanced that need more than a connection to the service.
func serviceVerbs() []string { return []string{"config", "dev-certs", "doctor", "serve", "upgrade"} }

// Main is the program instancedctl: the client's verbs, and no others. It does not return.
func Main() {
	t := New("instancedctl")
	os.Exit(t.Run(newClientCommand(t)))
}

func newClientCommand(t *Terminal) *cobra.Command {
	root := t.NewRoot()
	root.Short = "Start, stop and watch EC2 instances through instanced"
	root.Long = `instancedctl manages the lifecycle of EC2 instances through a running service. It has the
verbs of instanced that need nothing but a connection to the service.

--server, --output, --timeout and --principal can also be set by environment variables:
--server by INSTANCED_SERVER. The command line takes precedence.

` + ExitStatusHelp(nil)
	root.Example = t.Examples(
		"instanced describe",
		"instanced start i-1234567890abcdef0 --wait",
		"instanced watch --from-now",
		"instanced describe -o json | jq -r '.instances[].instance_id'",
	)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := t.Environ.misspelt(append(root.Commands(), root)...); err != nil && cmd.Name() != cobra.ShellCompRequestCmd {
			return err
		}
		return t.Environ.Apply(cmd.Flags(), Given(cmd))
	}
	root.AddGroup(&cobra.Group{ID: GroupService, Title: "Check the service:"})
	for _, verb := range serviceVerbs() {
		root.AddCommand(&cobra.Command{
			Use:                verb,
			Hidden:             true,
			DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return Usagef("only instanced has the verb %q; run \"instanced %[1]s\" where the service runs", verb)
			},
		})
	}
	return root
}
