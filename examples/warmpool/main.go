// Warmpool runs jobs on a pool of stopped machines: each worker claims one by starting
// it, waits until it runs, runs the job, and stops it again. Any number of these
// programs may use one pool at once, and never share a machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/instanced/instanced/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status: 0 if all jobs were done, 1 if not, 2 for a wrong command
// line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("warmpool", flag.ContinueOnError)
	flags.SetOutput(stderr)
	server := flags.String("server", "127.0.0.1:50051", "`address` of the service")
	name := flags.String("pool", "", "`name` of the pool: the tag \"pool\" of its machines")
	workers := flags.Int("workers", 4, "how many jobs to run at once")
	jobs := flags.Int64("jobs", 1, "how many jobs to run")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: warmpool --pool NAME [flags] COMMAND [ARGUMENT...]\n\n"+
			"Runs COMMAND for each job, with INSTANCE_ID and INSTANCE_ADDRESS in its environment.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *name == "" || *workers < 1 || *jobs < 1 || flags.NArg() == 0 {
		flags.Usage()
		return 2
	}
	c, err := client.Dial(*server, client.Options{Principal: "warmpool"})
	if err != nil {
		fmt.Fprintln(stderr, "warmpool:", err)
		return 2
	}
	defer func() { _ = c.Close() }()

	var (
		pool    = newPool(c, *name)
		left    atomic.Int64
		failed  atomic.Bool
		mu      sync.Mutex // of what is printed
		running sync.WaitGroup
	)
	left.Store(*jobs)
	for range *workers {
		running.Go(func() {
			for ctx.Err() == nil && left.Add(-1) >= 0 {
				out, err := job(ctx, pool, flags.Args())
				mu.Lock()
				fmt.Fprint(stdout, string(out))
				if err != nil {
					failed.Store(true)
					fmt.Fprintln(stderr, "warmpool:", err)
				}
				mu.Unlock()
			}
		})
	}
	running.Wait()
	if failed.Load() || ctx.Err() != nil {
		return 1
	}
	return 0
}

// job runs a command while it has a machine, and returns what the command printed.
func job(ctx context.Context, p *pool, command []string) (out []byte, err error) {
	m, err := p.claim(ctx)
	if err != nil {
		return nil, fmt.Errorf("claim a machine: %w", err)
	}
	defer func() {
		// Even if this program is told to stop, since nothing else would stop the machine.
		if released := p.release(context.WithoutCancel(ctx), m.id); err == nil {
			err = released
		}
	}()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // it is what the user wants to be run
	cmd.Env = append(os.Environ(), "INSTANCE_ID="+m.id, "INSTANCE_ADDRESS="+m.address)
	if out, err = cmd.CombinedOutput(); err != nil {
		err = fmt.Errorf("the job on %s: %w", m.id, err)
	}
	return out, err
}
