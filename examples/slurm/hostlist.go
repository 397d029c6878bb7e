package main

import (
	"fmt"
	"strconv"
	"strings"
)

// maxNodes is the most nodes of a call: the service takes so many instances at once.
const maxNodes = 1000

// expand returns the names that a hostlist of Slurm stands for, such as
// "gpu1,node[01-03,7]": each once, in their order. A name has one bracket at most.
func expand(hostlist string) ([]string, error) {
	var names []string
	known := make(map[string]bool)
	for rest := hostlist; ; {
		head, bracket, hasBracket := rest, "", false
		if end := strings.IndexAny(rest, ",["); end >= 0 {
			head, rest, hasBracket = rest[:end], rest[end:], rest[end] == '['
		} else {
			rest = ""
		}
		numbers, tail := []string{""}, ""
		if hasBracket {
			var err error
			var closed bool
			if bracket, rest, closed = strings.Cut(rest[1:], "]"); !closed {
				return nil, fmt.Errorf("%q: a bracket is not closed", hostlist)
			}
			if numbers, err = expandNumbers(bracket); err != nil {
				return nil, fmt.Errorf("%q: %w", hostlist, err)
			}
			end := strings.IndexAny(rest+",", ",[")
			tail, rest = rest[:end], rest[end:]
		}
		if head+tail == "" && !hasBracket || rest != "" && rest[0] != ',' || strings.ContainsAny(head+tail, "] \t\n") {
			return nil, fmt.Errorf("%q is not a list of nodes such as node[1-3],gpu7", hostlist)
		}
		for _, number := range numbers {
			if name := head + number + tail; !known[name] {
				known[name] = true
				names = append(names, name)
			}
		}
		if len(names) > maxNodes {
			return nil, fmt.Errorf("%q stands for more than %d nodes", hostlist, maxNodes)
		}
		if rest == "" {
			return names, nil
		}
		rest = rest[1:]
	}
}

// expandNumbers returns the numbers of a bracket, with their leading zeros.
func expandNumbers(bracket string) ([]string, error) {
	var numbers []string
	for part := range strings.SplitSeq(bracket, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number or a range of them", part)
		}
		to, err := strconv.ParseUint(last, 10, 32)
		if err != nil || to < from {
			return nil, fmt.Errorf("%q is not a number or a range of them", part)
		}
		if to-from >= maxNodes {
			return nil, fmt.Errorf("%q stands for more than %d nodes", part, maxNodes)
		}
		for n := from; n <= to; n++ {
			numbers = append(numbers, fmt.Sprintf("%0*d", len(first), n))
		}
	}
	return numbers, nil
}
