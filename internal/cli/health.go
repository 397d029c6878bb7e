package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
)

// healthTimeout is the default of --timeout for health.
const healthTimeout = 3 * time.Second

func newHealthCommand(t *Terminal) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "health [flags]",
		Short: "Check that the service is serving, for probes",
		Long: `Health asks the service at --server for its health (grpc.health.v1), once, and prints one line.

--service instanced.v1.commands asks whether it takes commands, as the owner of the journal does.

Exits with 0 if it is serving, 1 if it is not, 3 if it does not know the name, 5 if it did not
respond in time, and 6 if it is unreachable.`,
		Example: t.Examples(
			"instanced health",
			"instanced health --service instanced.v1.commands",
			"instanced health --server 10.0.0.7:50051 --timeout 1s -o json",
		),
		Args: NoArgs,
	}
	cmd.Flags().StringVar(&name, "service", "", "`name` whose health to ask for, such as instanced.v1.commands (default: the service as a whole)")
	CompleteWords(cmd, "service", "instanced.v1.commands", "instanced.v1.InstanceService")
	return t.verb(cmd, func() time.Duration { return cmp.Or(t.Timeout, healthTimeout) }, func(ctx context.Context, c *client.Client, _ []string) error {
		status, err := c.Health(ctx, name)
		if e, ok := errors.AsType[*client.Error](err); ok && e.Code == codes.NotFound {
			return &verdict{status: ExitRefused, lines: []string{fmt.Sprintf("the service at %s knows no health by the name %q", t.server, name)}}
		}
		if err != nil {
			return err
		}
		return ending(t.printHealth(name, status), t.healthVerdict(name, status))
	})
}

func (t *Terminal) healthVerdict(name, status string) *verdict {
	if status == client.HealthServing {
		return &verdict{}
	}
	what := "is not serving"
	if name != "" {
		what += " " + name
	}
	return &verdict{status: ExitInternal, lines: []string{fmt.Sprintf("the service at %s %s (%s)", t.server, what, status)}}
}

func (t *Terminal) printHealth(name, status string) error {
	if t.JSON() {
		raw, err := json.Marshal(struct {
			Server  string `json:"server"`
			Service string `json:"service"`
			Status  string `json:"status"`
		}{t.server, name, status})
		if err != nil {
			return err
		}
		return t.PrintRaw(raw)
	}
	if status != client.HealthServing {
		return nil // the verdict says so
	}
	_, err := fmt.Fprintln(t.Stdout, "serving")
	return err
}
