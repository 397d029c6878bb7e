// Package soak has tests only: it runs the real program in processes of its own, lets
// callers and subscribers at it, and then kills, ends, cuts off and starves those
// processes, again and again. Afterwards it checks what was answered and what was
// delivered against what is recorded, with the validators of
// internal/conformance.
//
// A short version of each campaign runs with every other test. "make soak" runs them in
// turn, longer, for as long as it is told to, each time with another seed. A seed
// determines what callers ask for and when something is done to a process; what a
// process does at that moment is for the machine to say.
package soak
