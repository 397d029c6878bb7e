package main

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

func newVerifyCommand(t *terminal) *cobra.Command {
	var watchFor time.Duration
	cmd := &cobra.Command{
		Use:   "verify [FILE] [flags]",
		Short: "Check what subscribers get against what they are promised",
		Long: `Verify checks a recording, or a service that is running, against the promises of
docs/guarantees.md.

FILE is what "instanced watch -o json" printed, - for standard input. It is checked for
what a recording shows by itself; where --server is given too, also against the history
that the service there has of the same instances. The filter of the recording is not in it:
of an instance that was seen to match nothing may be missing, of others nobody can tell.

Without FILE the service at --server is watched for a while, by several subscribers with
different filters, all but one of which are cut off and go on again and again, and what they
got is compared with the history. It changes nothing there.

What can be seen by calling only, such as that an answered command survives a crash, is not
checked. Ends with 1 if a promise is broken.`,
		Example: examples(
			"instanced verify --for 10s",
			"instanced watch -o json > recording.json; instanced verify recording.json",
			"instanced verify recording.json --server 127.0.0.1:50051 -o json",
		),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("verify takes one file, and got %d", len(args))
			}
			return nil
		},
	}
	bind(cmd.Flags(), &watchFor, "for", "duration", "30s", "watch the service for so long", parsePositiveDuration)
	within := func() time.Duration { return cmp.Or(t.timeout, watchFor+defaultTimeout) }
	t.verb(cmd, within, func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) > 0 && cmd.Flags().Changed("for") {
			return usagef("--for says how long to watch a service, and %s is a recording: want one of them", args[0])
		}
		if len(args) == 0 {
			v := &vigil{client: c, period: watchFor}
			r, err := v.keep(ctx)
			switch {
			case errors.Is(ctx.Err(), context.DeadlineExceeded):
				return &verdict{status: exitTimedOut, lines: []string{fmt.Sprintf("the time of %v was over before all was compared", within())}}
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
	// Checked says in words what was looked at, and With what it was compared with, if
	// anything.
	Checked string `json:"checked"`
	With    string `json:"compared_with,omitempty"`
	// NotCompared are the events that are older than what the service keeps, and
	// InstancesNotCompared the instances of snapshots of which it keeps nothing as old.
	NotCompared          int       `json:"events_not_compared,omitempty"`
	InstancesNotCompared int       `json:"snapshot_instances_not_compared,omitempty"`
	Findings             []finding `json:"promises"`
}

type finding struct {
	Promise string `json:"promise"`
	Checked int    `json:"checked"`
	Unit    string `json:"unit"`
	// Result is "holds", "broken", "not seen" when there was nothing to check, or "form
	// only" when there was nothing to compare what was seen with.
	Result   string `json:"result"`
	Evidence string `json:"evidence,omitempty"`
}

// add takes findings. What was found of a promise before stays as it was, unless it is
// broken now.
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

// formOnly says of a promise that holds that no more than the form was looked at.
func (r *verification) formOnly(promise string) {
	for i := range r.Findings {
		if f := &r.Findings[i]; f.Promise == promise && f.Result == "holds" {
			f.Result = "form only"
		}
	}
}

// printFindings prints what was found, and fails if a promise is broken.
func (t *terminal) printFindings(r *verification) error {
	broken := &verdict{}
	for _, f := range r.Findings {
		if f.Evidence != "" {
			broken.status = exitInternal
			broken.lines = append(broken.lines, "  "+f.Promise+" is broken: "+f.Evidence)
		}
	}
	if len(broken.lines) > 0 {
		broken.lines = append([]string{"what was promised was not kept:"}, broken.lines...)
	}
	if t.output == outputJSON {
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return ending(t.printRaw(raw), broken)
	}
	fmt.Fprintln(t.stdout, r.Checked)
	if r.With != "" {
		fmt.Fprintf(t.stdout, "Compared with the history at %s.\n", r.With)
	}
	if r.NotCompared > 0 {
		fmt.Fprintf(t.stdout, "%s not compared: older than what is kept there.\n", counted(r.NotCompared, "event"))
	}
	if r.InstancesNotCompared > 0 {
		fmt.Fprintf(t.stdout, "%s of snapshots not compared: nothing as old is kept of them there.\n", counted(r.InstancesNotCompared, "instance"))
	}
	fmt.Fprintln(t.stdout)
	tb := t.newTable("PROMISE", "CHECKED", "RESULT")
	for _, f := range r.Findings {
		tb.add(f.Promise, counted(f.Checked, f.Unit), f.Result)
	}
	return ending(tb.print(), broken)
}

// historyOf reads what the service has recorded of instances after a cursor.
func historyOf(ctx context.Context, c *client.Client, ids []string, after string) ([]*instancedv1.Event, error) {
	return conformance.HistoryBy(ids, after, func(req *instancedv1.ListEventsRequest) iter.Seq2[*instancedv1.ListEventsResponse, error] {
		return c.Events(ctx, req)
	})
}

// open opens a file that is named on the command line, or standard input for "-".
func (t *terminal) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(t.stdin), nil
	}
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usagef("there is no file %s", name)
	}
	return f, err
}
