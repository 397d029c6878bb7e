package lifecycle

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
)

// bucketCollector exports the token buckets of the backend, which are read when they are scraped.
type bucketCollector struct {
	buckets func() []instance.TokenBucket
}

var (
	bucketTokensDesc = prometheus.NewDesc("instanced_backend_bucket_tokens",
		"Tokens in a bucket; below zero if some were taken in advance.", []string{"bucket"}, nil)
	bucketCapacityDesc = prometheus.NewDesc("instanced_backend_bucket_capacity_tokens",
		"Tokens that a bucket holds at most.", []string{"bucket"}, nil)
	bucketRefillDesc = prometheus.NewDesc("instanced_backend_bucket_refill_tokens_per_second",
		"Tokens that a bucket gains a second: fewer than its limit after EC2 throttled unexpectedly.", []string{"bucket"}, nil)
)

// Describe sends the descriptions of all metrics.
func (c bucketCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- bucketTokensDesc
	descs <- bucketCapacityDesc
	descs <- bucketRefillDesc
}

// Collect sends the state of every bucket.
func (c bucketCollector) Collect(to chan<- prometheus.Metric) {
	for _, b := range c.buckets() {
		to <- prometheus.MustNewConstMetric(bucketTokensDesc, prometheus.GaugeValue, b.Level, b.Name)
		to <- prometheus.MustNewConstMetric(bucketCapacityDesc, prometheus.GaugeValue, b.Capacity, b.Name)
		to <- prometheus.MustNewConstMetric(bucketRefillDesc, prometheus.GaugeValue, b.Refill, b.Name)
	}
}
