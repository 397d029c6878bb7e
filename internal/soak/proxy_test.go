package soak_test

import (
	"context"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/instanced/instanced/internal/addrtest"
)

// proxy is a network between two processes that can be made to fail.
type proxy struct {
	t testing.TB
	*toxiproxy.Proxy
}

// newProxy leads to an address, until the test ends.
func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{t: t, Proxy: toxiproxy.NewProxy(server, "proxy", addrtest.Free(t), to)}
	p.connect()
	t.Cleanup(p.Stop)
	return p
}

// cut closes all connections, and refuses new ones until connect.
func (p *proxy) cut() { p.Stop() }

func (p *proxy) connect() {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// silence drops everything sent in either direction without closing anything. Existing
// connections never recover.
func (p *proxy) silence() {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		toxic := `{"type": "timeout", "stream": "` + stream + `", "attributes": {"timeout": 0}}`
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// restore closes the silent connections, and lets new ones speak.
func (p *proxy) restore() { p.Toxics.ResetToxics(context.Background()) }
