// Package sim simulates EC2: instances that start, stop, fail and vanish as EC2's do, with its
// states, delays, error texts, throttles and faults. It is the default backend of the service,
// and the fake of EC2 in tests. It records nothing: the journal does, and restores it.
//
// # Where to begin reading
//
//   - sim.go: [Config], [Backend], its lock, [Backend.Restore] and [Backend.Reset].
//   - execute.go: [Backend.Execute], the four verbs as a list of checks in EC2's order;
//     verbs.go has what each verb does to one instance.
//   - machine.go: one simulated instance and how its image is replaced.
//   - transitions.go: the delays between states and what happens at the end of each;
//     schedule.go has the heap of transitions that are due.
//   - notices.go and queue.go: how changes are reported, late, twice or not at all.
//   - faults.go and plan.go: the faults that can be injected, and which requests they strike.
//   - create.go, launch.go and outside.go: what EC2's other APIs and its console would do.
//
// # Concurrency
//
// All exported methods of [Backend] are safe for concurrent use. Two locks guard all state:
//
//   - Backend.mu guards the machines, the schedule, the fault plan and the token buckets. Each
//     request takes it once for its whole effect, so concurrent commands have an order, and
//     exactly one of them sees stopped -> pending. Methods whose names end in Locked, and the
//     steps of a command, need it held.
//   - queue.mu guards the notices.
//
// Backend.mu is taken before queue.mu, never the reverse. A slow-call fault sleeps without any
// lock, and a command's Sent callback is called without one. The only goroutine is that of the
// timer, which makes the transitions that are due; [Backend.Notices] runs on its consumer's.
//
// # Images and time
//
// An instance is an immutable image: a change replaces it, so an image that was handed out
// never changes. Transitions that are due are made whenever the lock is taken, with the time
// for which they were planned, and at the latest by the timer; an instance therefore never
// appears to be behind its schedule. Times of one instance strictly increase.
//
// # Promises
//
//   - Everything random is drawn from the seed, the instance's id and a counter of its own,
//     never from the order of goroutines: the same seed and the same requests give the same
//     events, times aside.
//   - What an image holds is enough to continue after a restart: transitions under way are
//     completed with their planned times. Faults and token buckets are not restored.
//   - Every change has a notice, which is repeated to each new consumer until it is
//     acknowledged, unless a fault or [Options] says otherwise or more than 16384 wait: then
//     the oldest is dropped, and the service finds the change by describing the instance.
package sim
