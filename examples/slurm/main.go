// Slurm resumes and suspends the nodes of a cluster whose machines are stopped while
// they have nothing to do, as the ResumeProgram and SuspendProgram of Slurm do. A node is
// the instance that has its name as the tag "node".
//
// Each node has an outcome of its own: one that has no machine, that there is no capacity
// for, or whose start falls back keeps none of the others waiting or down.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/instanced/instanced/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status: 0 if all nodes got to where they were wanted, 1 if some
// did not, 2 for a wrong command line, 3 if the service could not be asked.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("slurm", flag.ContinueOnError)
	flags.SetOutput(stderr)
	server := flags.String("server", "127.0.0.1:50051", "`address` of the service")
	timeout := flags.Duration("timeout", 10*time.Minute, "how long the nodes may take, at most 1h")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: slurm [flags] resume|suspend NODES\n\n"+
			"NODES is a list such as node[1-3],gpu7. Prints a line for each:\n\n"+
			"  NODE -> ADDRESS        it runs (resume)\n"+
			"  NODE is stopped        (suspend)\n"+
			"  NODE failed: REASON")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	act, ok := map[string]func(context.Context, *client.Client, []*node, time.Duration) error{"resume": resume, "suspend": suspend}[flags.Arg(0)]
	if !ok || flags.NArg() != 2 {
		flags.Usage()
		return 2
	}
	names, err := expand(flags.Arg(1))
	if err != nil {
		fmt.Fprintln(stderr, "slurm:", err)
		return 2
	}
	c, err := client.Dial(*server, client.Options{Principal: "slurm"})
	if err != nil {
		fmt.Fprintln(stderr, "slurm:", err)
		return 2
	}
	defer func() { _ = c.Close() }()

	nodes, err := find(ctx, c, names)
	if err == nil {
		err = act(ctx, c, nodes, *timeout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "slurm:", err)
		return 3
	}
	status := 0
	for _, n := range nodes {
		switch {
		case n.failure != "":
			status = 1
			fmt.Fprintf(stdout, "%s failed: %s\n", n.name, n.failure)
		case flags.Arg(0) == "resume":
			fmt.Fprintf(stdout, "%s -> %s\n", n.name, n.address)
		default:
			fmt.Fprintf(stdout, "%s is stopped\n", n.name)
		}
	}
	return status
}
