package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// release is set when a release is built:
// -ldflags "-X github.com/instanced/instanced/internal/cli.release=v1.2.3".
var release string

// Version returns the version of this binary: its release, else its module version, else
// its revision.
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(len(s.Value), 12)]
		}
	}
	return "devel"
}

func newVersionCommand(t *Terminal) *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Print the version of this program and information about the service",
		Long: `Version prints the version of this program and information about the service at --server:
its version, its backend, its log, and how many instances it has.`,
		Example: t.Examples(
			"instanced version",
			"instanced version --client",
		),
		Args: NoArgs,
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "print only the version of this program")
	return t.verb(cmd, t.briefly, func(ctx context.Context, c *client.Client, _ []string) error {
		if clientOnly {
			return t.printVersion(nil)
		}
		info, err := c.Info(ctx)
		if err != nil {
			if !t.JSON() {
				fmt.Fprintln(t.Stdout, t.clientVersion())
			}
			return err
		}
		return t.printVersion(info)
	})
}

func (t *Terminal) clientVersion() string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", t.program, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (t *Terminal) printVersion(info *instancedv1.GetServerInfoResponse) error {
	if t.JSON() {
		doc := map[string]json.RawMessage{}
		var err error
		if doc["client"], err = json.Marshal(map[string]string{"version": Version(), "go": runtime.Version()}); err != nil {
			return err
		}
		if info != nil {
			if doc["server"], err = document(info); err != nil {
				return err
			}
		}
		raw, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		return t.PrintRaw(raw)
	}
	if _, err := fmt.Fprintln(t.Stdout, t.clientVersion()); err != nil || info == nil {
		return err
	}
	owner := info.GetOwner().GetAddress()
	switch {
	case owner == "":
		owner = "none at the moment"
	case info.GetOwner().GetIsThisProcess():
		owner += " (this process)"
	}
	_, err := fmt.Fprintf(t.Stdout, `service   %s at %s
backend   %s, owned by %s
log       %s, %d bytes
instances %d, last compared with the backend %s
`,
		info.GetVersion(), t.server, info.GetBackend(), owner, info.GetLogId(), info.GetJournalBytes(),
		info.GetInstanceCount(), timeText(info.GetLastReconciled()))
	for _, b := range info.GetTokenBuckets() {
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.Stdout, "bucket    %s: %.1f of %g, gains %g a second", b.GetName(), b.GetLevel(), b.GetCapacity(), b.GetRefillPerSecond())
		if n := b.GetWaitingInstances(); n > 0 && err == nil {
			_, err = fmt.Fprintf(t.Stdout, ", %s waiting", Counted(int(n), "instance"))
		}
		if err == nil {
			_, err = fmt.Fprintln(t.Stdout)
		}
	}
	if i := info.GetImpairment(); i != nil && err == nil {
		_, err = fmt.Fprintf(t.Stdout, "impaired  %s: %s\n", i.GetReason(), i.GetMessage())
	}
	return err
}
