// Package journal stores what is known of every instance, and its history: durable, ordered
// and watchable, on etcd.
//
// # The log
//
// The log is explicit: one key per batch, named by its sequence number and written by one
// owner at a time. What is known of the instances is the fold of the log. The instance keys in
// etcd are a checkpoint of that fold: a start reads the checkpoint and replays the rest.
//
// A subscriber is a position, not a queue. It reads from one ring in memory that all
// subscribers share or, when it has fallen behind the ring, pages of the log. It never delays
// the writer.
//
// # Terms of this package
//
// Each builds on those before it:
//
//   - A [Batch] is what one write appends to the log: events, which are changes of instances, in
//     order. A [Record] is the state of one instance after the last of its events.
//   - An epoch (epochs.go) is a stretch of the log with one writer. It has a random id, and the
//     list of epochs is stored beside the log.
//   - A [Position] is a sequence number and the id of the epoch of the batch there. So it tells,
//     after a restore from an older copy, whether the log still has what it points to. A cursor is
//     a position as text.
//   - The view (view.go) is what this process knows of the log: the list of epochs, the records, and
//     a ring of the last batches. Every process has one, and readers read from it.
//   - A [Term] is the time in which this process owns the log, and begins an epoch. [Journal.Campaign]
//     returns it, and only a term can write.
//   - An update ([Term.Update]) is a function that reads and writes records and client tokens
//     through a [Tx]. Updates run one after another, and those that run while a batch is being
//     written share the next one.
//
// # What it promises
//
// Whatever [Term.Update] returned, and whatever a [Reader] returns, is on disk. Readers get
// every batch after their position, once and in order, or an error that says why not. Damage is
// named, never served. A process that is no longer the owner cannot write: every write compares
// the owner's key and the last batch. There is always room for the owner to expire tokens, to
// trim history and to write a checkpoint, and some disk space is always left to etcd.
//
// All methods are safe for concurrent use unless they say otherwise. Instances that are passed
// to the journal or come from it are shared and never modified.
//
// # Goroutines
//
//	writer.run         of a term: runs updates one after another and builds the next batch
//	writer.commitAll   of a term: writes one batch at a time, publishes it, answers its updates
//	Term.maintain      of a term: checkpoints, trimming, expiry, compaction, making room
//	Term.keepLease     of a term, with an external etcd: renews the lease, ends the term without it
//	Journal.followOwner  with an external etcd: keeps the view current while another process writes
//	members.probeRegularly  one per member of an external etcd: notices those that fall silent
//	login.try          of a connection to a member that has no valid token: logs in
//
// Readers have no goroutine of their own. The batch that is being built belongs to writer.run,
// and is handed to commitAll by the channel ready; two batches take turns. The view is written
// by whoever publishes: commitAll during a term, and otherwise the holder of refreshMu.
//
// # Locks
//
// In the order in which they are taken, where one is held while the next is taken:
//
//	Journal.using       for reading, by every use of etcd for a caller; for writing, by Close
//	Journal.campaign    by whoever becomes the owner
//	Journal.refreshMu   by whoever brings the view up to date from etcd
//	Term.maintenance    by the maintenance task that runs; guards the checkpointer
//	Journal.mu, Term.mu short; nothing is waited for while they are held
//	view.snapshotMu     by Snapshot
//	view.mu             the view and its ring; never held while etcd is asked
//	waiters.mu          the readers that wait for certain instances
//
// writer.mu, tokenIndex.mu, disk.mu, members.mu, login.mu and security.mu are leaves: no other
// lock is taken under them.
//
// # Where to begin
//
// journal.go opens and closes. update.go, tx.go, writer.go and commit.go are the way of an
// update to disk; view.go and reader.go lead from there to a subscriber. campaign.go and term.go
// are ownership, lease.go its duration. checkpoint.go, retention.go and budget.go keep the
// database small, and load.go reads it. keys.go lists the keys, dir.go the formats, and the
// package codec below has their bytes. members.go leads to an external etcd, security.go and
// login.go by TLS and with a user. boltfile.go, database.go and wal.go verify etcd's files
// before etcd opens them.
package journal
