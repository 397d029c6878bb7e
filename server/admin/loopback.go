package admin

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// loopbackOnly serves a handler only on a loopback listener, to clients on this machine, and not
// to web pages. listener returns the listener's address.
func loopbackOnly(listener func() net.Addr, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := refusal(listener(), r); why != "" {
			writeText(w, http.StatusForbidden, why+"\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refusal returns why a request is refused, or "". Both ends of the connection must be on
// loopback. The Host header must be too, since a web page can have any other name resolve to
// loopback. What browsers send on behalf of another site is refused as well, as far as they
// say so.
func refusal(listener net.Addr, r *http.Request) string {
	switch {
	case listener == nil || !isLoopback(listener.String()):
		return "this is served only if --admin-listen is a loopback address, such as 127.0.0.1:9090"
	case !isLoopback(r.RemoteAddr):
		return "this is served only to clients on the same machine"
	case !isLoopback(r.Host):
		return "the Host header must name loopback: localhost or a loopback address"
	case r.Header.Get("Origin") != "" && r.Header.Get("Origin") != "http://"+r.Host,
		!slices.Contains([]string{"", "none", "same-origin"}, r.Header.Get("Sec-Fetch-Site")):
		return "requests from web pages of other sites are refused"
	}
	return ""
}

// isLoopback reports whether a host, with or without a port, is on loopback by its name or
// address.
func isLoopback(hostPort string) bool {
	host := hostPort
	if h, _, err := net.SplitHostPort(hostPort); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}
