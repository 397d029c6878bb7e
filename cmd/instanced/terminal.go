package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	outputTable = "table"
	outputWide  = "wide"
	outputJSON  = "json"

	// How long a verb tries when --timeout does not say.
	defaultTimeout = 30 * time.Second
	// How long it waits for states when --timeout does not say.
	defaultWait = 5 * time.Minute
	// The longest name of a caller.
	maxPrincipal = 128
	// What a call is given beyond the wait that it asks for.
	waitGrace = 10 * time.Second
)

// terminal is what all verbs share: where they read and write, and the flags that
// each of them has.
type terminal struct {
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	environ environment

	// onHangup is what a hangup does; nil where it ends the process as SIGTERM does.
	onHangup atomic.Pointer[func()]

	// accepted is set once the command line is: errors before that are its own.
	accepted bool

	// away says when the service cannot be reached, and when it can again.
	away away

	// noHeaders and idsOnly are of the verbs that print tables.
	noHeaders, idsOnly bool

	server    string
	output    string
	timeout   time.Duration
	principal string
}

// addFlags declares the flags that each verb has that uses a running service.
func (t *terminal) addFlags(cmd *cobra.Command) {
	common := pflag.NewFlagSet("common", pflag.ContinueOnError)
	bind(common, &t.server, "server", "address", "127.0.0.1:50051", "address of the service", parseServer)
	bind(common, &t.principal, "principal", "name", defaultPrincipal(), "who calls, as told to the service", parsePrincipal)
	inEnvironment(common)
	cmd.Flags().AddFlagSet(common)
	t.addAnswerFlags(cmd, "give up after this long; 0 means 30s, 5m where states are waited for, never for watch")
}

// addAnswerFlags declares the flags of how a verb answers, and until when.
func (t *terminal) addAnswerFlags(cmd *cobra.Command, timeout string) {
	answer := pflag.NewFlagSet("answer", pflag.ContinueOnError)
	answer.VarP(newSetting(&t.output, "format", outputTable, oneOf(outputTable, outputWide, outputJSON)), "output", "o",
		"table for people, cut to the terminal's width; wide for all of it; json for programs")
	bind(answer, &t.timeout, "timeout", "duration", "0", timeout, parseDuration)
	inEnvironment(answer)
	cmd.Flags().AddFlagSet(answer)
	completeWords(cmd, "output", outputTable, outputWide, outputJSON)
}

// defaultPrincipal is the user of the operating system at this host.
func defaultPrincipal() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	printable := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
	return printable[:min(len(printable), maxPrincipal)]
}

// parseServer accepts an address with a port, or a name with a scheme that gRPC resolves.
func parseServer(text string) (string, error) {
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		if scheme == "http" || scheme == "https" {
			return "", fmt.Errorf("%q is a URL, and the service speaks gRPC: want an address with a port, such as 127.0.0.1:50051", text)
		}
		return text, nil
	}
	if host, port, err := net.SplitHostPort(text); err != nil || host == "" || port == "" {
		return "", fmt.Errorf("%q is not an address with a port, such as 127.0.0.1:50051", text)
	}
	return text, nil
}

// parsePrincipal accepts what can be sent as metadata.
func parsePrincipal(text string) (string, error) {
	printable := !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
	if !printable || text == "" || len(text) > maxPrincipal {
		return "", fmt.Errorf("%q is not a name of 1 to %d printable ASCII characters", text, maxPrincipal)
	}
	return text, nil
}

// verb completes a command that uses a running service: the shared flags, the context
// with its limit in time, the client, and errors of the service that know where it is.
// within returns the limit, 0 for none, once the flags are known.
func (t *terminal) verb(cmd *cobra.Command, within func() time.Duration, act func(ctx context.Context, c *client.Client, args []string) error) *cobra.Command {
	t.addFlags(cmd)
	cmd.DisableFlagsInUseLine = true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t.accepted = true
		opts := client.Options{Principal: t.principal, MaxAttempts: 3, OnRetry: t.tellRetry}
		if t.output != outputJSON {
			opts.DialOptions = append(printableResponses(), grpc.WithStatsHandler(connections{made: func() { t.away.back(t) }}))
		}
		c, err := t.dial(opts)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		ctx := cmd.Context()
		if limit := within(); limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		err = act(ctx, c, args)
		if e, ok := errors.AsType[*client.Error](err); ok {
			failed := &serviceError{server: t.server, cause: e}
			failed.unknown, _ = errors.AsType[*unknownOutcome](err)
			return failed
		}
		return err
	}
	return cmd
}

// briefly is the limit of a verb that only asks.
func (t *terminal) briefly() time.Duration { return cmp.Or(t.timeout, defaultTimeout) }

func (t *terminal) dial(opts client.Options) (*client.Client, error) {
	c, err := client.Dial(t.server, opts)
	if err != nil {
		return nil, usagef("--server: %v", err)
	}
	return c, nil
}

// tellRetry says on a terminal why nothing seems to happen. A verb that goes on for longer
// says once, wherever its output goes, that the service is away.
func (t *terminal) tellRetry(err error, delay time.Duration) {
	if t.output == outputJSON {
		return
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		err = &serviceError{server: t.server, cause: e}
	}
	line := printable(errorLines(err)[0])
	if t.away.expected.Load() {
		t.away.gone(t, line)
	} else if isTerminal(t.stderr) {
		fmt.Fprintf(t.stderr, "%s; trying again in %v\n", line, delay.Round(10*time.Millisecond))
	}
}

// away follows whether the service can be reached while a watch or a wait goes on. Its
// methods may be called from any goroutine.
type away struct {
	// expected is whether the verb outlasts that the service is away.
	expected atomic.Bool
	// since is when it was first noticed, in nanoseconds since 1970; 0 while it is there.
	since atomic.Int64
}

// gone says that the service is away, unless it has been said.
func (a *away) gone(t *terminal, why string) {
	if a.since.CompareAndSwap(0, time.Now().UnixNano()) {
		fmt.Fprintf(t.stderr, "%s; trying until it is back\n", why)
	}
}

// back says that the service is there again, if it was away.
func (a *away) back(t *terminal) {
	if since := a.since.Swap(0); since != 0 {
		fmt.Fprintf(t.stderr, "The service is back after %s.\n", elapsedText(time.Since(time.Unix(0, since))))
	}
}

// connections tells of each connection that is made: what a wait, which is silent until its
// answer comes, knows of the service being back.
type connections struct{ made func() }

// TagConn implements [stats.Handler].
func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (c connections) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnBegin); ok {
		c.made()
	}
}

// TagRPC implements [stats.Handler].
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements [stats.Handler].
func (connections) HandleRPC(context.Context, stats.RPCStats) {}

// ids returns the ids of a command line. A single "-" stands for those on standard
// input, separated by blanks or line ends, which are waited for until ctx is done. More than
// a request may have are refused as soon as they are read, so that endless input ends.
func (t *terminal) ids(ctx context.Context, args []string) ([]string, error) {
	if !slices.Equal(args, []string{"-"}) {
		return args, nil
	}
	if f, ok := t.stdin.(*os.File); ok && isCharDevice(f) {
		fmt.Fprintln(t.stderr, "Reading ids from standard input, until Ctrl-D.")
	}
	type input struct {
		ids []string
		err error
	}
	read := make(chan input, 1)
	// Nothing interrupts a read from a terminal or a pipe: it is left to the end of the
	// process when ctx is done first.
	go func() {
		var in input
		in.ids, in.err = readIDs(t.stdin)
		read <- in
	}()
	select {
	case in := <-read:
		return in.ids, in.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &verdict{status: exitTimedOut, lines: []string{"standard input did not end in time; --timeout allows more"}}
		}
		return nil, &verdict{status: exitInterrupted, lines: []string{"interrupted while ids were read from standard input"}}
	}
}

const (
	// maxIDs is how many instances a request may name.
	maxIDs = 1000
	// maxInputBytes is how much text may hold them, repeated ones and blanks included.
	maxInputBytes = 1 << 20
)

// readIDs reads at most maxIDs different ids, each of them once.
func readIDs(r io.Reader) (ids []string, err error) {
	limited := &io.LimitedReader{R: r, N: maxInputBytes + 1}
	scanner := bufio.NewScanner(limited)
	scanner.Split(bufio.ScanWords)
	seen := make(map[string]bool)
	for scanner.Scan() {
		id := scanner.Text()
		if seen[id] {
			continue
		}
		if len(ids) == maxIDs {
			return nil, usagef("there are more than %d ids on standard input, the most that one command takes", maxIDs)
		}
		seen[id] = true
		ids = append(ids, id)
	}
	err = scanner.Err()
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, usagef("there is a word of more than %d KiB on standard input: want ids, such as i-1234567890abcdef0", bufio.MaxScanTokenSize>>10)
	case err != nil:
		return nil, fmt.Errorf("read ids from standard input: %w", err)
	case limited.N == 0:
		return nil, usagef("there is more than %d MiB of text on standard input: want at most %d ids", maxInputBytes>>20, maxIDs)
	case len(ids) == 0:
		return nil, usagef("there are no ids on standard input")
	}
	return ids, nil
}

// needIDs refuses a command line without ids.
func needIDs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs the id of at least one instance, such as i-1234567890abcdef0, or - to read ids from standard input", cmd.Name())
	}
	return nil
}

// noArgs refuses arguments of a command that has none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, and got %q", cmd.Name(), args[0])
	}
	return nil
}

// completeIDs offers the ids of the fleet to the shell.
func (t *terminal) completeIDs(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	if err := t.environ.apply(cmd); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	c, err := t.dial(client.Options{Principal: t.principal, MaxAttempts: 1})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer func() { _ = c.Close() }()
	var found []cobra.Completion
	for page, err := range c.Describe(ctx, &instancedv1.DescribeInstancesRequest{PageSize: 1000}) {
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		for _, i := range page.GetInstances() {
			if !slices.Contains(args, i.GetInstanceId()) {
				found = append(found, cobra.CompletionWithDesc(i.GetInstanceId(),
					strings.TrimSpace(stateName(i.GetState())+" "+i.GetTags()["Name"])))
			}
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeWords offers the words that a flag accepts to the shell.
func completeWords(cmd *cobra.Command, flag string, words ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(fmt.Sprintf("the completion of a flag: %v", err))
	}
}

// document returns a message as JSON with the names of the contract and every field.
func document(msg proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(msg)
	if err != nil {
		return nil, err
	}
	// protojson varies its blanks from build to build.
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return nil, err
	}
	return printableJSON(compact.Bytes()), nil
}

// printJSON prints one document for people and jq alike.
func (t *terminal) printJSON(msg proto.Message) error {
	raw, err := document(msg)
	if err != nil {
		return err
	}
	return t.printRaw(raw)
}

func (t *terminal) printRaw(raw json.RawMessage) error {
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	_, err := indented.WriteTo(t.stdout)
	return err
}

// printJSONLine prints one document on one line.
func (t *terminal) printJSONLine(msg proto.Message) error {
	raw, err := document(msg)
	if err != nil {
		return err
	}
	_, err = t.stdout.Write(append(raw, '\n'))
	return err
}

// coloured returns a text in the colour of the state or finding that it names, on a terminal
// whose user wants colours.
func (t *terminal) coloured(text string) string {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(t.stdout) {
		return text
	}
	colours := map[string]string{
		"running": "32", "reached": "32",
		"pending": "33", "stopping": "33", "shutting-down": "33", "timed out": "33",
		"terminated": "31", "unreachable": "31",
		"ok": "32", "warning": "33", "problem": "31",
	}
	if code, ok := colours[text]; ok {
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	return text
}

// isTerminal reports whether what is written here is shown to somebody.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isCharDevice(f)
}

func isCharDevice(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
