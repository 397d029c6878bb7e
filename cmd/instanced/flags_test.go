package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// FuzzParseSize: a size that is accepted is not negative, and says what its number and unit
// say.
func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"", "0", "1048576", "512MiB", "1GiB", "4TiB", "-1", "MiB", "1.5GiB", "4611686018427387905", "9223372036854775807KiB", "0x10", "+1", " 1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err != nil {
			if !strings.Contains(err.Error(), strconv.Quote(text)) {
				t.Errorf("the error does not name %q: %v", text, err)
			}
			return
		}
		if n < 0 {
			t.Errorf("%q is %d", text, n)
		}
		if again, err := parseSize(fmt.Sprint(n)); err != nil || again != n {
			t.Errorf("%q is %d, which is %d, %v", text, n, again, err)
		}
		for suffix, factor := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} {
			if strings.HasSuffix(text, suffix) && n%factor != 0 {
				t.Errorf("%q is %d, no multiple of %d", text, n, factor)
			}
		}
	})
}

// FuzzParseEndpoints: what is accepted is a list of URLs that stands for itself.
func FuzzParseEndpoints(f *testing.F) {
	for _, text := range []string{"", "http://127.0.0.1:2379", "http://a,https://b:1", ",", "http://a,", "unix:///tmp/x", "http:///x", "http://a b", "http://[::1]:2379"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		endpoints, err := parseEndpoints(text)
		if err != nil {
			return
		}
		if got := strings.Join(endpoints, ","); got != text {
			t.Errorf("%q became %q", text, got)
		}
		for _, endpoint := range endpoints {
			if !strings.HasPrefix(strings.ToLower(endpoint), "http://") && !strings.HasPrefix(strings.ToLower(endpoint), "https://") {
				t.Errorf("%q was accepted", endpoint)
			}
		}
	})
}
