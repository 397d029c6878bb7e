// Package journal holds what is known of every instance, and its history:
// durable, ordered and watchable, on etcd.
//
// The log is explicit: one key a batch, named by its sequence number, written by
// one owner at a time. What is known of an instance is the fold of the log; the
// instance keys in etcd are a checkpoint of it, so that a start reads the
// checkpoint and replays the rest. A subscriber is a position in the log, served
// from one ring in memory that all of them share, or from pages of the log when
// it has fallen behind. It never holds the writer up.
//
// Every value in etcd carries a checksum (seal.go) and is of the format that the meta key
// names (dir.go). History, client tokens and the checkpoint share one budget in bytes
// (budget.go), which leaves the owner room to expire and to trim. With an external etcd one
// member is used at a time, and all are probed (members.go); a term lasts for as long as its
// lease is certain to (lease.go).
//
// What [Term.Update] has returned, and what a [Reader] yields, is on disk. All
// methods are safe for concurrent use unless they say otherwise. Instances that
// are handed to the journal or come from it are shared and never modified.
package journal
