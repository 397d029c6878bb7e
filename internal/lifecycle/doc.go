// Package lifecycle is the service layer, which every door shares: it checks
// requests, calls the backend, observes what happens, records it in the journal,
// and answers from the journal.
package lifecycle
