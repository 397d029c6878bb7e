package journal

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestEtcdLogsIntoTheJournalsLogger(t *testing.T) {
	var out strings.Builder
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	log := newZap(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: drop})))
	log = log.With(zap.String("member", "m"))
	log.Debug("a")
	log.Info("b", zap.Int("n", 1))
	log.Warn("c")
	log.Error("d", zap.Error(errors.New("broken")))
	log.Warn("simple token is not cryptographically signed")
	log.Error("failed to update storage version", zap.Error(errors.New("missing term information")))
	log.Error("failed to update storage version", zap.Error(errors.New("broken")))
	want := `level=DEBUG msg=b component=etcd member=m n=1
level=WARN msg=c component=etcd member=m
level=ERROR msg=d component=etcd member=m error=broken
level=DEBUG msg="simple token is not cryptographically signed" component=etcd member=m
level=DEBUG msg="failed to update storage version" component=etcd member=m error="missing term information"
level=ERROR msg="failed to update storage version" component=etcd member=m error=broken
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
