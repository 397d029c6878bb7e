package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// untilSignal returns a context that is canceled by the first SIGTERM or interrupt; the second
// exits at once. A hangup reloads if there is something to reload, and is ignored if the
// process was started with it ignored, as by nohup.
func (t *Terminal) untilSignal() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	end := func(s os.Signal) {
		if ctx.Err() != nil {
			os.Exit(ExitInterrupted)
		}
		cancel(fmt.Errorf("%w by signal: %v", context.Canceled, s))
	}
	ends := make(chan os.Signal, 2)
	signal.Notify(ends, os.Interrupt, syscall.SIGTERM)
	// Hangups have a channel of their own, so that a slow reload never delays the signals that
	// end the process.
	hangups := make(chan os.Signal, 1)
	outlives := signal.Ignored(syscall.SIGHUP)
	signal.Notify(hangups, syscall.SIGHUP)
	closed := terminalClosed()
	go func() {
		for s := range ends {
			end(s)
		}
	}()
	go func() {
		for s := range hangups {
			reload := t.onHangup.Load()
			switch {
			case !outlives && (reload == nil || closed()):
				end(s)
			case reload != nil:
				(*reload)()
			}
		}
	}()
	return ctx
}

// OnHangup handles hangups from now on by reload, unless the terminal was closed, instead of
// ending the process. It is safe for concurrent use.
func (t *Terminal) OnHangup(reload func()) { t.onHangup.Store(&reload) }

// terminalClosed returns a function that reports whether the terminal that the process was
// started on has been closed since, which also causes a hangup.
func terminalClosed() func() bool {
	var terminals []int
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if fd := int(f.Fd()); IsTTY(fd) {
			terminals = append(terminals, fd)
		}
	}
	return func() bool {
		return slices.ContainsFunc(terminals, func(fd int) bool { return !IsTTY(fd) })
	}
}

// IsTTY reports whether a file descriptor is a terminal.
func IsTTY(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}
