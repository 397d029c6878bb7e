// Package admin serves what operators and their tools need, over plain HTTP and apart from the
// service itself, so that it answers while the service is overloaded, drains or is still
// starting:
//
//   - /metrics: the metrics, in the Prometheus and the OpenMetrics text format
//   - /livez, /readyz: whether the process is alive, and ready for requests
//   - /debug/pprof/, /loglevel, /statusz, and channelz over gRPC, on loopback only
//
// Callers are not authenticated. Endpoints that change the process or show its memory are
// served on loopback only.
package admin
