// Package ec2query is the endpoint that speaks EC2's own Query protocol over HTTP, so that the
// AWS CLI, boto3, Terraform and every AWS SDK can call the service unmodified. It decodes requests,
// calls the service layer and encodes responses; it decides nothing about instances, and passes
// nothing on to AWS.
//
// # A request, step by step
//
// Begin reading with [Server.ServeHTTP] and Server.handle (http.go), which take a request through
// these steps:
//
//  1. Without credentials, refuseBrowsers (auth.go) rejects what a web page could have sent.
//  2. receiveLimiter and readBody bound and read the body; parseLimiter, parse and parseForm
//     (params.go) turn it into a tree of parameters.
//  3. identify (auth.go) verifies the signature (signature.go) over exactly what was parsed.
//  4. admit (connections.go) gives the call a place among the caller's, which it keeps until
//     its response is written.
//  5. dispatch (actions.go) finds the action, which reads its parameters through args. The
//     place of the body is released when the last parameter was read.
//  6. Commands pass through dedup (dedup.go): all attempts that an SDK makes of one command have
//     one outcome. Then the service layer carries them out.
//  7. encode (xml.go) writes the response. Errors are mapped to EC2's codes and HTTP statuses in
//     errors.go and nowhere else.
//
// Filters are matched by filter.go and glob.go in linear time, within a budget per request.
//
// # Goroutines
//
// The package starts none: net/http has one for each connection, on which its requests are served one
// after another. A command goes on after its caller has left, on the goroutine of the first attempt,
// within the deadline of the endpoint.
//
// # Locks
//
// admission.Admission, dedup and instance.Places each have one lock, and take no other while they hold
// it. None is held while a command runs or a connection is closed.
package ec2query
