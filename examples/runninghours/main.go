// Runninghours keeps a table of the states of all instances, and of how long each has
// been running, in an SQLite database, and goes on where it ended: after a kill -9 at any
// point no change is missed and none is counted twice, since the cursor is stored in the
// transaction that stores what was derived from the changes before it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status: 0 when it was told to end or has printed its report, 1 if
// something went wrong, 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("runninghours", flag.ContinueOnError)
	flags.SetOutput(stderr)
	server := flags.String("server", "127.0.0.1:50051", "`address` of the service")
	path := flags.String("db", "", "`file` of the database; it is made if it is not there")
	report := flags.Bool("report", false, "print the table and end")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: runninghours --db FILE [flags]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *path == "" || flags.NArg() > 0 {
		flags.Usage()
		return 2
	}
	t, err := openTable(ctx, *path)
	if err == nil {
		if *report {
			err = writeReport(ctx, stdout, t)
		} else {
			err = follow(ctx, *server, t, stderr)
		}
		err = errors.Join(err, t.close())
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "runninghours:", err)
		return 1
	}
	return 0
}

// follow keeps the table up to date until ctx ends.
func follow(ctx context.Context, server string, t *table, stderr io.Writer) error {
	c, err := client.Dial(server, client.Options{Principal: "runninghours"})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	cursor, err := t.cursor(ctx)
	if err != nil {
		return err
	}
	for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{
		AfterCursor:      cursor,
		OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT,
		ProgressInterval: durationpb.New(10 * time.Second),
	}) {
		if err != nil {
			return err
		}
		if reason := msg.GetSnapshot().GetReason(); reason != instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED {
			fmt.Fprintf(stderr, "runninghours: the table begins again: %v\n", reason)
		}
		if err := t.take(ctx, msg); err != nil {
			return err
		}
	}
	return nil
}

// writeReport prints the table.
func writeReport(ctx context.Context, w io.Writer, t *table) error {
	rows, since, err := t.rows(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Counted since %s.\n", since.UTC().Format(time.RFC3339))
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "ID\tSTATE\tHOURS")
	for _, r := range rows {
		fmt.Fprintf(out, "%s\t%s\t%.2f\n", r.id, r.state, r.running(time.Now()).Hours())
	}
	return out.Flush()
}
