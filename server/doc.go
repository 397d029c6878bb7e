// Package server is the gRPC endpoint: it converts messages to requests of the service layer,
// its responses to messages, and its errors to statuses. It decides nothing about instances.
//
// # A call, step by step
//
// Begin reading with [New] and [Server.Serve], then follow a unary call:
//
//  1. connection.Read (connections.go) reads its frames, more slowly if the connection floods
//     the server, and onHeaders (receivetimeout.go) counts the call.
//  2. earlyAdmission.unary (earlyadmission.go) identifies the caller and admits the call before
//     its request is received, then receives and decodes the request. WaitInstances exchanges
//     its place for a long-lived one.
//  3. chain.unary (chain.go) sets the deadline, calls the handler, maps its error to a status
//     and logs the call. It is the only interceptor apart from recovery from panics.
//  4. service (service.go) converts (fromproto.go, toproto.go) and calls the service layer.
//  5. connection.queue (unsent.go) hands the response to grpc-go when there is room for it.
//
// A stream passes through chain.stream instead of steps 2 and 3, and watchStream.run (watch.go)
// sends it its messages.
//
// Handlers return plain errors. Only status.go names status codes.
//
// # What is bounded
//
// [admission.Admission] bounds requests, streams and connections, in shares of their callers.
// Places bound the large requests that are decoded at once, unsentBudget the responses that
// the peer has not read, and connection.charge how fast a flood is read. docs/decisions 0013,
// 0052 and 0067 say why.
//
// # Goroutines
//
// Each Serve has two of its own until it returns: updateHealth and memoryReport.run. All others
// belong to grpc-go: per connection a reader, a writer and keepalive, and the handlers, which run
// on a pool of reused goroutines or, when that is used up, on their own. A stream whose client may
// send more than one request has another goroutine while it receives.
//
// # Locks
//
// No lock is held while a handler runs, a request is received or a connection is closed. Each of
// admission.Admission, connections (what floods cost), unsentBudget and instance.Places has one
// lock, and takes no other while it holds it. Only unsentMessages takes the lock of its
// unsentBudget under its own.
package server
