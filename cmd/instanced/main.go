// Command instanced is the service for the lifecycle of EC2 instances, and its command-line
// client.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/journal"
)

// exitDamaged is the exit status if the journal is damaged.
const exitDamaged = 7

func main() {
	t := &terminal{Terminal: cli.New("instanced")}
	os.Exit(t.Run(newRootCommand(t)))
}

// terminal is what all verbs share, also those that run the service.
type terminal struct {
	*cli.Terminal

	// configFile is --config, and sources where the settings of a verb that has it came from.
	configFile string
	sources    sources
}

func newRootCommand(t *terminal) *cobra.Command {
	root := t.NewRoot()
	root.Short = "Start, stop and watch EC2 instances through one service"
	root.Long = `instanced manages the lifecycle of EC2 instances. "instanced serve" runs the service; the
other verbs are its client.

--server, --output, --timeout, --principal and the flags of serve can also be set by
environment variables: --server by INSTANCED_SERVER, --sim-speed by INSTANCED_SIM_SPEED. The
command line takes precedence. The flags of serve can also be set in a file: --config.

` + cli.ExitStatusHelp(map[int]string{
		cli.ExitInternal: "doctor: there is a problem",
		exitDamaged:      "serve: the journal is damaged",
	})
	root.Example = t.Examples(
		"instanced serve",
		"instanced describe",
		"instanced start i-1234567890abcdef0 --wait",
		"instanced watch --from-now",
		"instanced describe -o json | jq -r '.instances[].instance_id'",
	)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := t.Environ.Unknown(append(root.Commands(), root)...); err != nil && cmd.Name() != cobra.ShellCompRequestCmd {
			return err
		}
		return t.applySettings(cmd)
	}
	root.AddGroup(&cobra.Group{ID: cli.GroupService, Title: "Run and check the service:"})
	for _, verb := range []*cobra.Command{newServeCommand(t), newConfigCommand(t), newDoctorCommand(t), newUpgradeCommand(t), newDevCertsCommand(t)} {
		verb.GroupID = cli.GroupService
		root.AddCommand(verb)
	}
	return root
}

// journalError gives the error of a damaged journal, or of an invalid setting, its exit status.
func journalError(err error) error {
	if errors.Is(err, journal.ErrDamaged) {
		return &cli.StatusError{Status: exitDamaged, Err: err}
	}
	if e, ok := errors.AsType[*journal.ConfigError](err); ok {
		return cli.Usagef("%v", e)
	}
	return err
}
