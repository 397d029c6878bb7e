package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/journal"
)

func newUpgradeCommand(t *terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Complete an upgrade of the service",
		Long: `A new version of the service reads and writes the journal in the format of the previous
version, so that you can go back to that. "instanced upgrade finalize" raises the journal to
the format of this version.`,
		Example: t.Examples("instanced upgrade finalize"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.Usagef("unknown subcommand %q; \"instanced upgrade --help\" lists the subcommands", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFinalizeCommand(t))
	return cmd
}

func newFinalizeCommand(t *terminal) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "finalize [flags]",
		Short: "Raise the journal to the format of this version",
		Long: `Finalize raises the journal in a data directory, or in an external etcd, to the newest format
of this version. Older versions reject the journal from then on; the only way back is to
restore a copy.

The service must be stopped. With an external etcd, all processes that share the journal must
be stopped or run this version, which is not verified.`,
		Example: t.Examples(
			"instanced upgrade finalize",
			"instanced upgrade finalize --data-dir /var/lib/instanced -o json",
			"instanced upgrade finalize --etcd-endpoints http://127.0.0.1:2379",
		),
		Args:                  cli.NoArgs,
		DisableFlagsInUseLine: true,
	}
	cfg.bindJournal(cmd.Flags())
	t.addConfig(cmd)
	t.AddAnswerFlags(cmd, "give up after this long; 0 means never")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t.Accept()
		if err := cfg.checkJournal(cmd.Flags(), t.sources); err != nil {
			return err
		}
		ctx := cmd.Context()
		if t.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, t.Timeout)
			defer cancel()
		}
		log, closeLog := newLogger(logText, slog.LevelWarn, t.Stderr)
		defer closeLog()
		was, is, err := journal.Finalize(ctx, journal.Config{
			DataDir:   cfg.dataDir,
			Endpoints: cfg.etcdEndpoints,
			Prefix:    cfg.etcdPrefix,
			Security:  cfg.etcd,
			Version:   cli.Version(),
			Logger:    log,
		})
		if err != nil {
			return journalError(err)
		}
		if t.JSON() {
			raw, err := json.Marshal(map[string]int{"was": was, "format": is})
			if err != nil {
				return err
			}
			return t.PrintRaw(raw)
		}
		text := fmt.Sprintf("was raised from format %d to format %d", was, is)
		if was == is {
			text = fmt.Sprintf("already has format %d", is)
		}
		where := cfg.dataDir
		if len(cfg.etcdEndpoints) > 0 {
			where = "etcd, below " + cfg.etcdPrefix + ","
		}
		_, err = fmt.Fprintf(t.Stdout, "the journal in %s %s\n", where, text)
		return err
	}
	return cmd
}
