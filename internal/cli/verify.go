package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

func newVerifyCommand(t *Terminal) *cobra.Command {
	var watchFor time.Duration
	cmd := &cobra.Command{
		Use:   "verify [FILE] [flags]",
		Short: "Check that subscribers get what they are promised",
		Long: t.named(`Verify checks a recording, or a running service, against the promises of docs/guarantees.md.

FILE is the output of "instanced watch -o json", - for standard input. It is checked by
itself, and if --server is given also against the history that the service there has of the
same instances. A recording does not contain its filter: missing events are detected only
for instances that are known to match it.

Without FILE, several subscribers with different filters watch the service at --server for a
while. All but one of them disconnect and resume again and again, and what they receive is
compared with the history. Nothing is changed.

Promises that take commands to check, such as that an acknowledged command survives a crash,
are not checked. Exits with 1 if a promise is broken.`),
		Example: t.Examples(
			"instanced verify --for 10s",
			"instanced watch -o json > recording.json; instanced verify recording.json",
			"instanced verify recording.json --server 127.0.0.1:50051 -o json",
		),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return Usagef("verify takes one file, got %d", len(args))
			}
			return nil
		},
	}
	Bind(cmd.Flags(), &watchFor, "for", "duration", "30s", "how long to watch the service", ParsePositiveDuration)
	within := func() time.Duration { return cmp.Or(t.Timeout, watchFor+defaultTimeout) }
	t.verb(cmd, within, func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) > 0 && cmd.Flags().Changed("for") {
			return Usagef("--for is how long to watch a service and cannot be used with a recording (%s)", args[0])
		}
		if len(args) == 0 {
			v := &liveCheck{client: c, period: watchFor}
			r, err := v.run(ctx)
			switch {
			case errors.Is(ctx.Err(), context.DeadlineExceeded):
				return &verdict{status: ExitTimedOut, lines: []string{fmt.Sprintf("the timeout of %v passed before everything was compared", within())}}
			case err != nil:
				return err
			}
			return t.printFindings(r)
		}
		recordings, err := t.readRecording(args[0])
		if err != nil {
			return err
		}
		r := recordings.alone()
		if cmd.Flags().Changed("server") || givenBeforeVerb(cmd, "server") {
			if err := recordings.compare(ctx, c, r); err != nil {
				return err
			}
			r.With = t.server
		}
		return t.printFindings(r)
	})
	return cmd
}

// verification is what verify found.
type verification struct {
	// Checked describes what was checked, and With what it was compared with, if anything.
	Checked string `json:"checked"`
	With    string `json:"compared_with,omitempty"`
	// NotCompared counts the events that are older than the history of the service, and
	// InstancesNotCompared the instances of snapshots without a history that old.
	NotCompared          int       `json:"events_not_compared,omitempty"`
	InstancesNotCompared int       `json:"snapshot_instances_not_compared,omitempty"`
	Findings             []finding `json:"promises"`
}

type finding struct {
	Promise string `json:"promise"`
	Checked int    `json:"checked"`
	Unit    string `json:"unit"`
	// Result is "holds", "broken", "not seen" if there was nothing to check, or "form only" if
	// there was nothing to compare it with.
	Result   string `json:"result"`
	Evidence string `json:"evidence,omitempty"`
}

// add adds findings. An earlier finding on the same promise stays unless it is broken now.
func (r *verification) add(findings []conformance.Finding) {
	for _, f := range findings {
		n := slices.IndexFunc(r.Findings, func(found finding) bool { return found.Promise == f.Promise })
		if n < 0 {
			n = len(r.Findings)
			out := finding{Promise: f.Promise, Checked: f.Checked, Unit: f.Unit, Result: "holds"}
			if f.Checked == 0 {
				out.Result = "not seen"
			}
			r.Findings = append(r.Findings, out)
		}
		if out := &r.Findings[n]; f.Err != nil && out.Evidence == "" {
			out.Result, out.Evidence = "broken", f.Err.Error()
		}
	}
}

// formOnly marks a promise that holds as checked for its form only.
func (r *verification) formOnly(promise string) {
	for i := range r.Findings {
		if f := &r.Findings[i]; f.Promise == promise && f.Result == "holds" {
			f.Result = "form only"
		}
	}
}

// printFindings prints the findings and fails if a promise is broken.
func (t *Terminal) printFindings(r *verification) error {
	broken := &verdict{}
	for _, f := range r.Findings {
		if f.Evidence != "" {
			broken.status = ExitInternal
			broken.lines = append(broken.lines, "  "+f.Promise+" is broken: "+f.Evidence)
		}
	}
	if len(broken.lines) > 0 {
		broken.lines = append([]string{"promises were broken:"}, broken.lines...)
	}
	if t.JSON() {
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return ending(t.PrintRaw(raw), broken)
	}
	fmt.Fprintln(t.Stdout, r.Checked)
	if r.With != "" {
		fmt.Fprintf(t.Stdout, "Compared with the history at %s.\n", r.With)
	}
	if r.NotCompared > 0 {
		fmt.Fprintf(t.Stdout, "%s not compared: older than the history there.\n", Counted(r.NotCompared, "event"))
	}
	if r.InstancesNotCompared > 0 {
		fmt.Fprintf(t.Stdout, "%s of snapshots not compared: the history there does not go back that far.\n", Counted(r.InstancesNotCompared, "instance"))
	}
	fmt.Fprintln(t.Stdout)
	tb := t.newTable("PROMISE", "CHECKED", "RESULT")
	for _, f := range r.Findings {
		tb.add(f.Promise, Counted(f.Checked, f.Unit), f.Result)
	}
	return ending(tb.print(), broken)
}

// historyOf reads the recorded changes of instances after a cursor.
func historyOf(ctx context.Context, c *client.Client, ids []string, after string) ([]*instancedv1.Event, error) {
	return conformance.HistoryBy(ids, after, func(req *instancedv1.ListEventsRequest) iter.Seq2[*instancedv1.ListEventsResponse, error] {
		return c.Events(ctx, req)
	})
}

// open opens a file that is named on the command line, or standard input for "-".
func (t *Terminal) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(t.Stdin), nil
	}
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, Usagef("file not found: %s", name)
	}
	return f, err
}
