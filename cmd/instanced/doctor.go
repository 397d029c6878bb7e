package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/internal/backend/ec2"
	"github.com/instanced/instanced/internal/cli"
)

func newDoctorCommand(t *terminal) *cobra.Command {
	var flags awsFlags
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Check that the service can run on EC2, and say what to grant",
		Long: `Doctor checks what "instanced serve --backend ec2" needs with the same flags: credentials,
region, permission to describe instances and for each verb, the queue and its policy. It
prints a line for each: ok; warning for what the service can do without; problem, with what
to grant or to fix.

It changes nothing: each verb is a dry run, on one managed instance that it names. A message
in the queue may be hidden from other consumers for a second.

Exits with 1 if there is a problem. What cannot be checked, such as the verbs without a
managed instance, counts as one.`,
		Example: t.Examples(
			"instanced doctor --aws-region eu-central-1",
			"AWS_PROFILE=ops instanced doctor --manage-filter team=payments --sqs-queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/instanced",
			"instanced doctor -o json | jq -r '.findings[] | select(.level != \"ok\") | .advice'",
		),
		Args:                  cli.NoArgs,
		DisableFlagsInUseLine: true,
	}
	flags.bind(cmd.Flags())
	t.addConfig(cmd)
	t.AddAnswerFlags(cmd, "give up after this long; 0 means never, but each request to AWS has its own timeout")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t.Accept()
		ctx := cmd.Context()
		if t.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, t.Timeout)
			defer cancel()
		}
		findings, err := diagnose(ctx, flags)
		if err != nil {
			return err
		}
		return t.printDiagnosis(ctx, findings)
	}
	return cmd
}

// diagnose examines the configuration. Unusable AWS settings are a finding, invalid flags an
// error.
func diagnose(ctx context.Context, flags awsFlags) (iter.Seq[ec2.Finding], error) {
	settings, err := loadAWS(ctx, flags, slog.New(slog.DiscardHandler))
	if _, ok := errors.AsType[*cli.UsageError](err); ok {
		return nil, err
	}
	if err != nil {
		return func(yield func(ec2.Finding) bool) {
			yield(ec2.Finding{Check: "settings", Level: ec2.LevelProblem, Text: err.Error()})
		}, nil
	}
	settings.CallTimeout = checkTimeout
	return ec2.Examine(ctx, settings), nil
}

// findingDocument is a finding in -o json.
type findingDocument struct {
	Check  string    `json:"check"`
	Level  ec2.Level `json:"level"`
	Text   string    `json:"text"`
	Advice string    `json:"advice,omitempty"`
}

// printDiagnosis prints findings as they arrive, or together as JSON, and fails if there is a
// problem or not everything was checked.
func (t *terminal) printDiagnosis(ctx context.Context, findings iter.Seq[ec2.Finding]) error {
	document := struct {
		Findings []findingDocument `json:"findings"`
	}{[]findingDocument{}}
	var problems []string
	for f := range findings {
		if f.Level == ec2.LevelProblem {
			problems = append(problems, f.Check)
		}
		if t.JSON() {
			document.Findings = append(document.Findings, findingDocument(f))
			continue
		}
		text := f.Text
		if f.Advice != "" {
			text += "; " + f.Advice
		}
		level := string(f.Level)
		if _, err := fmt.Fprintf(t.Stdout, "%s%*s  %-23s  %s\n", t.Coloured(level), len(ec2.LevelProblem)-len(level), "", f.Check, cli.Printable(text)); err != nil {
			return err
		}
	}
	if t.JSON() {
		raw, err := json.Marshal(document)
		if err == nil {
			err = t.PrintRaw(raw)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &cli.StatusError{Status: cli.ExitTimedOut, Err: fmt.Errorf("the timeout of %v passed before everything was checked", t.Timeout)}
	case ctx.Err() != nil:
		return ctx.Err()
	case len(problems) > 0:
		return &cli.StatusError{Status: cli.ExitInternal, Err: errors.New(cli.Counted(len(problems), "problem") + ": " + strings.Join(problems, ", "))}
	}
	return nil
}
