// Package ec2 is the backend that carries commands out on real EC2, and the only package
// that knows EC2's API.
//
// Commands of many callers go out in few calls, since calls are what EC2 limits most. Each
// caller still gets the outcome that it would have had alone, in some order of the commands.
//
// # The way of a command
//
//   - [Backend.Execute] rejects what cannot succeed: the circuit breaker is open (breaker.go),
//     or the instances are not managed (managed.go).
//   - [dispatch.Dispatcher] queues the request and builds batches, as token buckets, fair shares
//     and busy instances allow. It rejects a request whose deadline would pass first.
//   - Backend.dispatchLoop starts a batchRun for each batch (batch.go). Its work list
//     (worklist.go) says which part of the batch to send next.
//   - batchRun.call makes one call by client.mutate (client.go), once the tokens are there, and
//     again while EC2 throttles. The SDK retries nothing.
//   - failureOf and the table of codes classify an error (failure.go, codes.go); batchRun.attempt
//     does what its reaction says: fail the named items and retry the others, check what became
//     of a lost answer, split, or leave it to the work list to bisect the part or to search for
//     how much of it there is capacity for (capacity.go).
//   - batchRun.deliver (deliver.go) gives an item its outcome, and Execute returns.
//
// # A lost answer
//
// When a call fails in a way that leaves open whether EC2 carried it out, the run describes the
// instances (batchRun.checkOutcome, outcome.go). An instance in the state to which the verb leads
// was changed by this call if EC2 dates the change accordingly (instance.MayHaveMade), the date
// was not described before, and it is not that of a change of which another caller was told,
// which lastChanges remembers. The change, marked as deduced, then goes to the first item
// that wants it (appliedUnclaimed). Instances that were not changed are tried again. If a later
// call finds them changed after all, the earlier one did it (unchangedAfterFailure). After
// maxUnknownAttempts such calls, when EC2 cannot be asked, and for reboots, which leave no trace,
// callers are told that the outcome is unknown; package observer goes on from there.
//
// # Goroutines
//
//   - One dispatch loop, which only calls Dispatcher.Next and starts runs.
//   - One goroutine for each batch in flight. It owns its batchRun; batches share the
//     dispatcher, lastChanges, the breaker, the client, the managed cache and the bucket of
//     DescribeInstances.
//   - Callers of Execute and Describe, which wait in their own goroutines.
//   - While [Backend.Notices] is consumed, one that deletes and renews messages (inbox.go).
//
// [Backend.Close] cancels the batches and waits for them and the dispatch loop. Notices ends with
// its own context.
//
// # Locks
//
// The dispatcher's lock comes before the breaker's, which it takes to fail what waits. The
// callbacks Sent and Requeued of a command run under the dispatcher's lock and must not call the
// backend. The inbox's lock comes before its caches' locks. All others (lastChanges, managed cache,
// Backend.readsMu) are taken alone.
//
// # Promises
//
//   - Every outcome is one that some order of the commands, one by one, would have had; one of
//     the callers that start a stopped instance at once is told that it did.
//   - No instance is in two calls in flight that may change it.
//   - Not a byte of a command is written after the term in which it was accepted (fence.go).
//   - An error without OutcomeUnknown means that nothing was changed, except for the changes
//     beside it.
//   - Work is in proportion to what a command names, whatever else waits.
//
// Begin with Execute, then batchRun.run and batchRun.attempt.
package ec2
