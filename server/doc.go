// Package server is the gRPC edge: it turns messages into requests of the service
// layer, its answers into messages, and its errors into statuses. It decides
// nothing about instances.
//
// Calls pass through one chain of interceptors, written down in chain.go. Handlers
// return plain errors; status.go is the only place that names a status code.
package server
