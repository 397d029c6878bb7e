// Package dispatch decides which instances go into which call to EC2, and when. It knows no
// SDK: callers queue requests with [Dispatcher.Enqueue], one goroutine calls [Dispatcher.Next]
// and starts a goroutine for each batch, which ends with [Dispatcher.Done]. One lock guards
// everything.
//
// # Queues
//
// A request is divided into items: a whole request is one item, a per-instance request one item
// for each instance. Requests with the same [Key] may travel together and share a batchQueue,
// in which every tenant (a principal) has a tenantQueue in order of arrival. At most
// [MaxBatches] batches of a batchQueue are in flight, a second one only once the last is older
// than [SlowCallAfter]; dry runs travel alone.
//
// An instance in a batch is busy until the batch is done or waits for tokens to send again.
// Meanwhile items that want it are out of their queues, so that they hold up nothing behind them.
//
// # Fairness
//
// Calls are shared by start-time fair queueing. A tenant's virtual time is the earliest start of
// its next call, and each call that it is in advances it, by one if the tenant is alone in the
// call and by less if others pay a part. The clock is the start of the last call. Tenants whose
// virtual time is not ahead of the clock are eligible, in order of arrival; the others come after
// them, least virtual time first.
//
// Within a batch, tenants are served by round robin with a quantum that doubles every round.
//
// Instance tokens are divided by max-min fairness, as they come. A tenant that waits for more
// instances than it has tokens is filling: it gets an equal part of each token, until its credit
// covers everything it waits for. Credit is kept until it is used, so large requests are not
// starved and small ones need not wait for them. All filling tenants were given the same since
// a common start, the fill level, and a tenant's credit is the fill level less what it was when the
// credit was zero (emptyLevel). So a token costs one step however many tenants wait.
//
// The same numbers give the wait estimate by which Enqueue rejects a request whose deadline
// would pass before it is sent.
//
// # Cost
//
// Queueing, leaving and building a batch take O(log n) steps for each item that they are about,
// however many others wait, and a step for each Key with an item that can go out. Some things
// cost more: the tokens of all tenants are reallocated when EC2 has fewer than expected, and when
// the bucket is full and no tenant has enough; and a busy instance is a step for each item that
// wants it.
//
// Begin with Dispatcher.Next, action.next and action.buildBatch.
package dispatch
