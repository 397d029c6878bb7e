package main

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/journal"
)

// parseListen accepts an address. Whether it may be listened on depends on other settings: see
// checkTransport.
func parseListen(text string) (string, error) { return parseAddress(text, "127.0.0.1:50051") }

// parseAddress accepts a host and a port.
func parseAddress(text, example string) (string, error) {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q is not an address with a port, such as %s", text, example)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > math.MaxUint16 {
		return "", fmt.Errorf("%q has no port between 0 and 65535", text)
	}
	return text, nil
}

// portOf returns the port of an address that has one.
func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// onLoopback reports whether a host can be reached from this machine only.
func onLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// parseEndpoints accepts a comma-separated list of URLs, or none.
func parseEndpoints(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	endpoints := strings.Split(text, ",")
	for _, endpoint := range endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%q is not a URL such as http://127.0.0.1:2379", masked(endpoint))
		}
	}
	return endpoints, nil
}

// parsePrefix accepts a key prefix with a leading and without a trailing slash.
func parsePrefix(text string) (string, error) {
	if !strings.HasPrefix(text, "/") || len(text) < 2 || strings.HasSuffix(text, "/") {
		return "", fmt.Errorf("%q is not a prefix such as /instanced, with a leading and without a trailing slash", text)
	}
	return text, nil
}

// parseJournalSize accepts a size of at least journal.MinMaxBytes.
func parseJournalSize(text string) (int64, error) {
	n, err := parseSize(text)
	if err == nil && n < journal.MinMaxBytes {
		err = fmt.Errorf("%q is less than %dMiB, the minimum size of a journal", text, journal.MinMaxBytes>>20)
	}
	return n, err
}

func parseSpeed(text string) (float64, error) {
	speed, err := strconv.ParseFloat(text, 64)
	if err != nil || !(speed == 0 || speed >= 0.001 && speed <= math.MaxFloat64) {
		return 0, fmt.Errorf("%q is neither 0 (no delays) nor at least 0.001, such as 1 (like EC2) or %v", text, sim.DefaultSpeed)
	}
	return speed, nil
}

func parseSeed(text string) (uint64, error) {
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number of 0 or more", text)
	}
	return seed, nil
}

func parseLevel(text string) (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	if level, ok := levels[text]; ok {
		return level, nil
	}
	return 0, fmt.Errorf("%q is not one of debug, info, warn, error", text)
}
