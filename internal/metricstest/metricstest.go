// Package metricstest reads metrics in tests, as a scrape would show them.
package metricstest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Samples returns all samples of a registry by name and labels; of a histogram its count and its
// sum.
func Samples(t testing.TB, registry prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			suffix := ""
			if len(labels) > 0 {
				suffix = "{" + strings.Join(labels, ",") + "}"
			}
			if h := m.GetHistogram(); h != nil {
				all[family.GetName()+"_count"+suffix] = float64(h.GetSampleCount())
				all[family.GetName()+"_sum"+suffix] = h.GetSampleSum()
				continue
			}
			all[family.GetName()+suffix] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

// Expect fails the test unless a registry has some samples with their values. One that is not
// there is not one of 0.
func Expect(t testing.TB, registry prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	got := Samples(t, registry)
	for name, value := range want {
		if is, ok := got[name]; !ok {
			t.Errorf("%s is not there, want %v", name, value)
		} else if is != value {
			t.Errorf("%s is %v, want %v", name, is, value)
		}
	}
}
