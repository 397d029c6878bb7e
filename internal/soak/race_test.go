//go:build race

package soak_test

// The program that is tested is built as the test is.
var buildFlags = []string{"-race"}
