// Package dispatch decides which instances go into which call to EC2, and when. It knows no
// SDK: callers queue requests with [Dispatcher.Enqueue], one goroutine calls
// [Dispatcher.Next] and starts a goroutine for each batch, which ends with [Dispatcher.Done]. One lock guards everything.
//
// # Queues
//
// A request is divided into items: a whole request is one item, a per-instance request one item
// for each instance. Requests with the same [Key] may travel together and share a batchQueue,
// in which every tenant (a principal) has a tenantQueue in order of arrival. At most
// [MaxBatches] batches of a batchQueue are in flight, a second one only once the last is older
// than [SlowCallAfter]; dry runs travel alone.
//
// An instance in a batch is busy until the batch is done or waits for tokens to send again. Items that want it leave their queues
// meanwhile, so that they hold up nothing behind them.
//
// # Fairness
//
// Two things are scarce: calls, and instance tokens. Calls are shared by deficit round robin:
// each call is charged to the tenants in it as virtual time, and the tenant that has had the
// least is next. Within a batch tenants take turns that double. Instance tokens are divided
// equally as they come, and what a tenant was given stays its own: large requests are not
// overtaken for ever, and small ones need not wait for them.
//
// The same numbers give the wait estimate by which Enqueue rejects a request whose deadline
// would pass before its turn.
//
// # Cost
//
// Queueing, leaving and building a batch take O(log n) steps for each item that they are about,
// however many others wait, and a step for each Key that is ready. Some things cost more: EC2 having fewer tokens than expected, and a
// full bucket of which no tenant has enough, reallocate the tokens of all tenants; and a busy
// instance is a step for each item that wants it.
//
// Begin with Dispatcher.Next, action.next and action.buildBatch.
package dispatch
