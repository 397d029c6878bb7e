package main

import (
	"errors"
	"testing"
)

func TestAnAddressThatStandsForAllIsAdvertisedByName(t *testing.T) {
	t.Parallel()
	named := func() (string, error) { return "host-a", nil }
	unnamed := func() (string, error) { return "", errors.New("no name") }
	for _, c := range []struct {
		address  string
		hostname func() (string, error)
		want     string
	}{
		{"[::]:50051", named, "host-a:50051"},
		{"0.0.0.0:50051", named, "host-a:50051"},
		{"10.0.0.7:50051", named, "10.0.0.7:50051"},
		{"[::1]:50051", named, "[::1]:50051"},
		{"[::]:50051", unnamed, "[::]:50051"},
	} {
		if got := advertised(c.address, c.hostname); got != c.want {
			t.Errorf("%s is advertised as %s, want %s", c.address, got, c.want)
		}
	}
}
