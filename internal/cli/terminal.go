package cli

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

	// defaultTimeout is the default of --timeout for verbs that do not wait.
	defaultTimeout = 30 * time.Second
	// defaultWait is the default of --timeout for waits.
	defaultWait = 5 * time.Minute
	// maxPrincipal is the maximum length of a principal.
	maxPrincipal = 128
	// waitGrace is how much later than the server's timeout of a wait the client gives up.
	waitGrace = 10 * time.Second
)

// Terminal is what all verbs share: their input and output streams and common flags. Flags have
// their values once the command line is parsed. It is for one command, and but for
// [Terminal.OnHangup] not safe for concurrent use.
type Terminal struct {
	// program is the name of the program.
	program string

	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Environ Environment

	// onHangup handles a hangup; nil if it ends the process like SIGTERM.
	onHangup atomic.Pointer[func()]

	// accepted is set once the command line is valid: earlier errors are usage errors.
	accepted bool

	// away reports when the service becomes unreachable and reachable again.
	away away

	// noHeaders and idsOnly are flags of the verbs that print tables.
	noHeaders, idsOnly bool

	server    string
	tls       client.TLSFiles
	output    string
	principal string

	// Timeout is --timeout, 0 for the default of the verb.
	Timeout time.Duration
}

// addFlags declares the flags of every verb that calls the service.
func (t *Terminal) addFlags(cmd *cobra.Command) {
	common := pflag.NewFlagSet("common", pflag.ContinueOnError)
	Bind(common, &t.server, "server", "address", "127.0.0.1:50051", "address of the service", parseServer)
	Bind(common, &t.principal, "principal", "name", defaultPrincipal(), "name of the caller, recorded as the cause of changes", parsePrincipal)
	common.StringVar(&t.tls.CA, "tls-ca", "", "PEM `file` of the authorities of the service's certificate; with any flag of TLS the service is called with TLS")
	common.StringVar(&t.tls.Cert, "tls-cert", "", "PEM `file` of the client certificate, which says who calls")
	common.StringVar(&t.tls.Key, "tls-key", "", "PEM `file` of the private key of --tls-cert")
	common.StringVar(&t.tls.ServerName, "tls-server-name", "", "`name` in the service's certificate (default: the host of --server)")
	InEnvironment(common)
	cmd.Flags().AddFlagSet(common)
	t.AddAnswerFlags(cmd, "give up after this long; 0 means 30s, 3s for health, 5m for waits, never for watch")
}

// AddAnswerFlags declares the flags for a verb's output and timeout.
func (t *Terminal) AddAnswerFlags(cmd *cobra.Command, timeout string) {
	t.AddOutput(cmd)
	answer := pflag.NewFlagSet("answer", pflag.ContinueOnError)
	Bind(answer, &t.Timeout, "timeout", "duration", "0", timeout, ParseDuration)
	InEnvironment(answer)
	cmd.Flags().AddFlagSet(answer)
}

// AddOutput declares the flag for a verb's output.
func (t *Terminal) AddOutput(cmd *cobra.Command) {
	output := pflag.NewFlagSet("output", pflag.ContinueOnError)
	output.VarP(newSetting(&t.output, "format", outputTable, OneOf(outputTable, outputWide, outputJSON)), "output", "o",
		"table, cut to the width of the terminal; wide, never cut; or json, for programs")
	InEnvironment(output)
	cmd.Flags().AddFlagSet(output)
	CompleteWords(cmd, "output", outputTable, outputWide, outputJSON)
}

// defaultPrincipal returns user@host.
func defaultPrincipal() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	ascii := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
	return ascii[:min(len(ascii), maxPrincipal)]
}

// parseServer accepts an address with a port, or a target with a scheme that gRPC resolves.
func parseServer(text string) (string, error) {
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		if scheme == "http" || scheme == "https" {
			return "", fmt.Errorf("%q is a URL, but the service speaks gRPC: give an address with a port, such as 127.0.0.1:50051", text)
		}
		return text, nil
	}
	if host, port, err := net.SplitHostPort(text); err != nil || host == "" || port == "" {
		return "", fmt.Errorf("%q is not an address with a port, such as 127.0.0.1:50051", text)
	}
	return text, nil
}

// parsePrincipal accepts a name that can be sent as gRPC metadata.
func parsePrincipal(text string) (string, error) {
	printable := !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
	if !printable || text == "" || len(text) > maxPrincipal {
		return "", fmt.Errorf("%q is not a name of 1 to %d printable ASCII characters", text, maxPrincipal)
	}
	return text, nil
}

// Accept notes that the command line is valid: an error of a verb after it is none of usage.
func (t *Terminal) Accept() { t.accepted = true }

// JSON reports whether the output is for programs: -o json.
func (t *Terminal) JSON() bool { return t.output == outputJSON }

// verb completes a command that calls the service: it adds the shared flags, the timeout, the
// client, and the address of the service to errors. within returns the timeout, 0 for none,
// once the flags are parsed.
func (t *Terminal) verb(cmd *cobra.Command, within func() time.Duration, act func(ctx context.Context, c *client.Client, args []string) error) *cobra.Command {
	t.addFlags(cmd)
	cmd.DisableFlagsInUseLine = true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t.Accept()
		opts := client.Options{Principal: t.principal, MaxAttempts: 3, OnRetry: t.tellRetry}
		if !t.JSON() {
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

// briefly is the timeout of a verb that does not wait.
func (t *Terminal) briefly() time.Duration { return cmp.Or(t.Timeout, defaultTimeout) }

func (t *Terminal) dial(opts client.Options) (*client.Client, error) {
	if t.tls != (client.TLSFiles{}) {
		var err error
		if opts.TransportCredentials, err = client.TLSFromFiles(t.tls); err != nil {
			return nil, Usagef("--tls-ca, --tls-cert and --tls-key: %v", err)
		}
	}
	c, err := client.Dial(t.server, opts)
	if err != nil {
		return nil, Usagef("--server: %v", err)
	}
	return c, nil
}

// tellRetry says on a terminal why a verb seems to hang. A long-running verb says once, on any
// output, that the service is unreachable.
func (t *Terminal) tellRetry(err error, delay time.Duration) {
	if t.JSON() {
		return
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		err = &serviceError{server: t.server, cause: e}
	}
	line := Printable(t.errorLines(err)[0])
	if t.away.expected.Load() {
		t.away.gone(t, line)
	} else if isTerminal(t.Stderr) {
		fmt.Fprintf(t.Stderr, "%s; retrying in %v\n", line, delay.Round(10*time.Millisecond))
	}
}

// away tracks whether the service is reachable during a watch or a wait. It is safe for
// concurrent use.
type away struct {
	// expected is whether the verb survives an outage of the service.
	expected atomic.Bool
	// since is when the outage was noticed, in nanoseconds since 1970; 0 if there is none.
	since atomic.Int64
}

// gone reports the beginning of an outage, once.
func (a *away) gone(t *Terminal, why string) {
	if a.since.CompareAndSwap(0, time.Now().UnixNano()) {
		fmt.Fprintf(t.Stderr, "%s; retrying until it is back\n", why)
	}
}

// back reports the end of an outage, if there was one.
func (a *away) back(t *Terminal) {
	if since := a.since.Swap(0); since != 0 {
		fmt.Fprintf(t.Stderr, "The service is back after %s.\n", elapsedText(time.Since(time.Unix(0, since))))
	}
}

// connections observes new connections: during a wait, which receives nothing before its
// response, they are the only sign that the service is back.
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

// ids returns the ids of a command line. A single "-" reads them from standard input, separated
// by white space, until ctx is done. It fails as soon as there are more than a request may
// have, so that endless input ends.
func (t *Terminal) ids(ctx context.Context, args []string) ([]string, error) {
	if !slices.Equal(args, []string{"-"}) {
		return args, nil
	}
	if f, ok := t.Stdin.(*os.File); ok && isCharDevice(f) {
		fmt.Fprintln(t.Stderr, "Reading ids from standard input; end with Ctrl-D.")
	}
	type input struct {
		ids []string
		err error
	}
	read := make(chan input, 1)
	// A read from a terminal or a pipe cannot be interrupted: if ctx is done first, it is
	// abandoned until the process exits.
	go func() {
		var in input
		in.ids, in.err = readIDs(t.Stdin)
		read <- in
	}()
	select {
	case in := <-read:
		return in.ids, in.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &verdict{status: ExitTimedOut, lines: []string{"standard input did not end in time; --timeout allows more"}}
		}
		return nil, &verdict{status: ExitInterrupted, lines: []string{"interrupted while ids were read from standard input"}}
	}
}

const (
	// maxIDs is how many instances a request may name.
	maxIDs = 1000
	// maxInputBytes bounds the text that holds them, repetitions and white space included.
	maxInputBytes = 1 << 20
)

// readIDs reads at most maxIDs distinct ids.
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
			return nil, Usagef("more than %d ids on standard input, the maximum for one command", maxIDs)
		}
		seen[id] = true
		ids = append(ids, id)
	}
	err = scanner.Err()
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, Usagef("standard input has a word of more than %d KiB: want ids, such as i-1234567890abcdef0", bufio.MaxScanTokenSize>>10)
	case err != nil:
		return nil, fmt.Errorf("read ids from standard input: %w", err)
	case limited.N == 0:
		return nil, Usagef("more than %d MiB of text on standard input: want at most %d ids", maxInputBytes>>20, maxIDs)
	case len(ids) == 0:
		return nil, Usagef("there are no ids on standard input")
	}
	return ids, nil
}

// needIDs rejects a command line without ids.
func needIDs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return Usagef("%s needs the id of at least one instance, such as i-1234567890abcdef0, or - to read ids from standard input", cmd.Name())
	}
	return nil
}

// NoArgs rejects arguments of a command that takes none.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef("%s takes no arguments, got %q", cmd.Name(), args[0])
	}
	return nil
}

// completeIDs completes the ids of existing instances in the shell.
func (t *Terminal) completeIDs(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	if err := t.Environ.Apply(cmd.Flags(), Given(cmd)); err != nil {
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

// CompleteWords completes the values of a flag in the shell.
func CompleteWords(cmd *cobra.Command, flag string, words ...cobra.Completion) {
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
	// protojson varies its white space from build to build.
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return nil, err
	}
	return printableJSON(compact.Bytes()), nil
}

// printJSON prints one document for people and jq alike.
func (t *Terminal) printJSON(msg proto.Message) error {
	raw, err := document(msg)
	if err != nil {
		return err
	}
	return t.PrintRaw(raw)
}

// PrintRaw prints a JSON document, indented.
func (t *Terminal) PrintRaw(raw json.RawMessage) error {
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	_, err := indented.WriteTo(t.Stdout)
	return err
}

// printJSONLine prints one document on one line.
func (t *Terminal) printJSONLine(msg proto.Message) error {
	raw, err := document(msg)
	if err != nil {
		return err
	}
	_, err = t.Stdout.Write(append(raw, '\n'))
	return err
}

// Coloured returns a text in the color of the state or finding that it names, if standard
// output is a terminal and colors are not disabled.
func (t *Terminal) Coloured(text string) string {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(t.Stdout) {
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

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isCharDevice(f)
}

func isCharDevice(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
