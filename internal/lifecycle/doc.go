// Package lifecycle is the service layer that every server shares: it checks requests, has
// commands carried out and recorded, and answers from the journal.
//
// It is what remains of the service when gRPC, HTTP and etcd are taken away. Everything that
// happens to an instance gets into the journal through package observer; this package decides
// what a caller may ask for, and reads what was recorded.
//
// # Where to begin reading
//
// [Service] in service.go puts the parts together, and its Run is the life of a process:
// campaign for the journal, serve the term, campaign again. requests.go has what callers ask
// for and are told, check.go turns a request into something valid or lists all that is wrong
// with it. Then each call is one file, from its exported method down:
//
//   - command.go: [Service.Command], the four verbs;
//   - idempotency.go: the same with a client token, joined and answered once; and retry.go:
//     what becomes of a command of which only the intent is recorded;
//   - describe.go, history.go: [Service.Describe] and [Service.Events], pages of what is known
//     and of what was recorded;
//   - wait.go: [Service.Wait], until instances have reached a state or no longer can;
//   - watch.go: [Service.Watch], a position in the journal with a filter.
//
// # A start with a client token
//
// [Service.Command] checks the request and gets the term from the observer. executeIdempotent
// joins a command in flight under the same token, or starts one that does not end with the
// call that asked for it. executeToken returns a recorded answer; or records the intent; or,
// if an earlier attempt got no further than that, has retryRemaining decide instance by
// instance what is left to do. execute then calls observer.Execute, which records the answer
// to the token (recordToken) in the same batch as the changes.
//
// # Goroutines
//
// A call runs in the goroutine of its caller. [Service.Run] belongs to the process; below it
// run the observer's goroutines, and one for each command with a client token that is in
// flight, which ends with the term. A [Watch] has no goroutine: it reads when its caller asks.
//
// # Locks
//
// The only lock of this package is that of idempotency, a leaf: nothing is called while it is
// held. The observer and the journal have their own.
//
// # What it promises
//
// Requests are checked before anything else happens, and all that is wrong is reported
// together. A command returns only after what it changed is recorded; its cursor is at or
// before the first of those changes. Of attempts under one client token one is carried out,
// and all get its answer. Reads are answered from the journal alone, except that ids which the
// journal does not know are looked up at the backend once. Every process answers reads; only
// the owner of the journal carries commands out, and the others say who that is.
package lifecycle
