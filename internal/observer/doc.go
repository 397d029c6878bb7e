// Package observer turns what a backend says into recorded changes. Answers to commands,
// notices and descriptions come in; each change of an instance goes into the journal once, in
// an order that is possible, with the command that caused it if there was one.
//
// Each of the three is unreliable in its own way. The answer to a command may be lost, or come
// after the change is long over. Notices may be lost, late, doubled and out of order, and give
// whole seconds. Descriptions may show what was before a change. The observer believes none of
// them alone; it holds back what may be explained by a command in flight, asks the backend
// where notices leave a gap, and infers the states that an instance must have passed through.
//
// # Where to begin reading
//
// apply.go: [updateTx.apply] is the one entry by which an observation is recorded. It records
// the commands that changed the instance before and are not recorded yet, asks the tracker for
// the commands that may have caused the change, and calls the reducer (reduce.go), the only
// code that writes changes of instances. Three sources lead there:
//
//   - execute.go: [Observer.Execute] has the backend carry a command out and applies its
//     answers (recordAnswers). rejection.go is for instances that reject a command because of
//     a state that is not recorded yet.
//   - notices.go: consumeNotices classifies notices and applies those that follow directly
//     from what is known. For the others the instance is described.
//   - refresher.go decides which instances are described when, and describe.go asks the backend
//     for them; reconcile.go asks for all. Both call recordDescriptions in staleness.go, which
//     says what makes a description current, superseded or stale. poll.go and pollschedule.go
//     request descriptions of instances in transition.
//
// The tracker (tracker.go) knows the commands that matter to all of this, and inflight.go is
// the way of one command through its states. hold.go is what commands hold back, turn.go the
// order in which answers are recorded, candidate.go which commands may have caused a step.
//
// # The states of a command
//
// For each of its instances a command is queued in the backend, in flight once a request may
// have been written, then answered or rejected, and at last untracked. If it ends otherwise it
// is unresolved: unrecorded if it was answered and the journal could not be written, or of
// unknown outcome if the answer was lost. An unresolved command is recorded, or found to have
// done nothing, when the instance is next described; until then it is a candidate cause.
//
// # What happens to a lost answer
//
// callAndRecord marks the outcome unknown and requests a description. Whatever is observed next
// goes through apply, which finds the command among the possible causes. The reducer attributes a
// step to the command (causeOf, attribute) if the verb leads directly to the new state, if no
// other step is attributed to it, and, for a start, if [instance.MayHaveMade] says that the
// launch time allows it. Otherwise the step has another cause, or is external. A description that
// was requested after the command ended is taken to show everything it did: dropResolved drops
// the command. A backend that acts even later makes an external change. If the step is recorded
// before the backend gives up, withRecordedSteps reports the change to the caller instead of an
// unknown outcome.
//
// A backend may deduce from a description that its call made a change. Such an answer yields to
// the record: if the change is recorded already, as another command's or as an external one, it is not
// recorded again, and nothing is inferred that would make room for it.
//
// # Goroutines
//
// Execute, EnsureKnown, Refresh and Reconcile run in their callers' goroutines. [Observer.Serve]
// owns the others, all of which end with the term: the refresher, the consumer of notices with
// one goroutine that receives them, the poll with one that tails the journal, the regular
// reconciliation, and one that waits for the end of the term. Functions of an update run in the
// journal's writer, one after the other, also after their caller has given up waiting. They must
// not wait.
//
// # Locks
//
// In this order: the refresher's (what is to be described, and who waits), then the tracker's
// (commands, held notices). The backend's dispatcher comes before the tracker too, since it calls
// markSent and markRequeued. The tracker's lock is a leaf, as are the locks of unreadable, of the
// poll schedule and of the expiring caches. No lock is held while the backend or the journal is
// called, while anybody waits, or while a notice is acknowledged or a waiter's caller runs.
//
// # What it promises
//
//   - Whoever the journal names as the cause of a change is told of it, or that the outcome is
//     unknown. No other caller is told of it.
//   - What waits for the backend to answer somebody else's command waits for at most a second
//     (maxHold). What waits for an answer to be recorded ends with the time for recording it.
//   - A notice is acknowledged after what follows from it is recorded, and never before.
//   - After notices were lost, the journal ends in what the backend describes: in transition
//     within eight poll intervals, otherwise within a reconcile interval.
//   - The work for an observation depends on the commands on that instance, not on the fleet.
package observer
