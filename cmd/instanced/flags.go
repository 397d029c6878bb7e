package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envPrefix begins the names of all variables that stand for flags.
const envPrefix = "INSTANCED_"

// maxSlip is how many letters a name may be wrong in to be taken for another one.
const maxSlip = 3

// setting is the value of a flag whose text is checked by parse. The errors of parse
// say what is right.
type setting[T any] struct {
	target *T
	kind   string
	text   string
	parse  func(text string) (T, error)
}

// bind declares a flag with a default, which must be one that parse accepts.
func bind[T any](flags *pflag.FlagSet, target *T, name, kind, text, usage string, parse func(string) (T, error)) {
	flags.Var(newSetting(target, kind, text, parse), name, usage)
}

func newSetting[T any](target *T, kind, text string, parse func(string) (T, error)) *setting[T] {
	s := &setting[T]{target: target, kind: kind, parse: parse}
	if err := s.Set(text); err != nil {
		panic(fmt.Sprintf("the default of a flag: %v", err))
	}
	return s
}

// String returns the text of the value, for the help.
func (s *setting[T]) String() string { return s.text }

// Type returns the word that stands for the value in the help.
func (s *setting[T]) Type() string { return s.kind }

// Set takes a new value.
func (s *setting[T]) Set(text string) error {
	value, err := s.parse(text)
	if err != nil {
		return err
	}
	*s.target, s.text = value, text
	return nil
}

// list is the value of a flag that takes one word or several, separated by commas, and
// may be repeated. An empty word has to be one that parse refuses: where pflag's own lists
// are empty too, nothing would be asked for, and that is everything.
type list[T any] struct {
	target *[]T
	kind   string
	words  []string
	given  bool
	parse  func(word string) (T, error)
}

// bindList declares a flag of words. It begins with the given ones, which are replaced.
func bindList[T any](flags *pflag.FlagSet, target *[]T, name, kind, usage string, parse func(string) (T, error), words ...string) {
	l := &list[T]{target: target, kind: kind, parse: parse}
	if len(words) > 0 {
		if err := l.Set(strings.Join(words, ",")); err != nil {
			panic(fmt.Sprintf("the default of a flag: %v", err))
		}
		l.given = false
	}
	flags.Var(l, name, usage)
}

// String returns the words, for the help.
func (l *list[T]) String() string { return strings.Join(l.words, ",") }

// Type returns the word that stands for the value in the help.
func (l *list[T]) Type() string { return l.kind }

// Set adds words to those that were given before.
func (l *list[T]) Set(text string) error {
	words := strings.Split(text, ",")
	values := make([]T, len(words))
	for i, word := range words {
		var err error
		if values[i], err = l.parse(word); err != nil {
			return err
		}
	}
	if !l.given {
		*l.target, l.words, l.given = nil, nil, true
	}
	*l.target, l.words = append(*l.target, values...), append(l.words, words...)
	return nil
}

// someWord accepts any word that there is; what says what it is to be.
func someWord(what string) func(string) (string, error) {
	return func(word string) (string, error) {
		if word == "" {
			return "", fmt.Errorf("\"\" is not %s", what)
		}
		return word, nil
	}
}

// oneOf accepts one of the given words.
func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if slices.Contains(words, text) {
			return text, nil
		}
		return "", fmt.Errorf("%q is not one of %s", text, strings.Join(words, ", "))
	}
}

// parseDuration accepts a duration that is not negative.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration of 0 or more, such as 30s, 5m or 24h", text)
	}
	return d, nil
}

// parsePositiveDuration accepts a duration above 0.
func parsePositiveDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a duration above 0, such as 30s, 5m or 24h", text)
	}
	return d, nil
}

// mostCounted is what any number of things is bounded by: twice as many still fit into the
// 32 bits that the wire has for them.
const mostCounted = 1 << 30

// parseCount accepts a whole number of at least the given one.
func parseCount(least int) func(string) (int, error) {
	return func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > mostCounted {
			return 0, fmt.Errorf("%q is not a whole number from %d to %d", text, least, mostCounted)
		}
		return n, nil
	}
}

// parseSize accepts a number of bytes, such as 1048576, 512MiB or 1GiB.
func parseSize(text string) (int64, error) {
	factors := map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
	digits := strings.TrimRight(text, "BKMGTi")
	factor, ok := factors[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<62)/factor {
		return 0, fmt.Errorf("%q is not a size, such as 512MiB, 1GiB or a number of bytes", text)
	}
	return n * factor, nil
}

// flagError turns what cobra and pflag say of a wrong command line into a sentence that
// says what is right.
func flagError(err error) error {
	if _, ok := errors.AsType[*usageError](err); ok {
		return err
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usagef("--%s: %v", e.GetFlag().Name, reasonOf(e))
	}
	return usagef("%v; --help lists the flags", err)
}

// reasonOf returns what the value's own parser said, and for that of Go, which is that of
// switches, what is right.
func reasonOf(err error) error {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok && e.GetFlag().Value.Type() == "bool" {
		return fmt.Errorf("%q is neither true nor false", e.GetValue())
	}
	if cause := errors.Unwrap(err); cause != nil {
		return cause
	}
	return err
}

// environment holds the variables that stand for flags, by their full name. One that is
// empty is not set.
type environment map[string]string

func newEnvironment(environ []string) environment {
	e := make(environment)
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && value != "" && strings.HasPrefix(name, envPrefix) {
			e[name] = value
		}
	}
	return e
}

// envName returns the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// inEnvironment marks flags that have a variable: those that configure, and not those
// that say what one call is to do.
func inEnvironment(flags *pflag.FlagSet) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Annotations == nil {
			flag.Annotations = make(map[string][]string)
		}
		flag.Annotations[envPrefix] = []string{envName(flag.Name)}
	})
}

// apply sets the flags of a verb that are set in the environment and not on the
// command line.
func (e environment) apply(cmd *cobra.Command) error {
	var errs []error
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		for _, name := range flag.Annotations[envPrefix] {
			value, ok := e[name]
			if !ok || flag.Changed || givenBeforeVerb(cmd, flag.Name) {
				continue
			}
			if err := cmd.Flags().Set(flag.Name, value); err != nil {
				errs = append(errs, usagef("%s: %v", name, reasonOf(err)))
			}
		}
	})
	return errors.Join(errs...)
}

// givenBeforeVerb reports whether a flag stands before the verb on the command line.
func givenBeforeVerb(cmd *cobra.Command, name string) bool {
	flag := cmd.Root().Flags().Lookup(name)
	return flag != nil && flag.Changed
}

// serviceLink matches what Kubernetes puts into the environment of every container when
// there is a service called "instanced". Source: Kubernetes, "Discovering services".
var serviceLink = regexp.MustCompile(`^INSTANCED_(SERVICE_(HOST|PORT)|PORT)(_|$)`)

// unknown returns an error for variables that look as if they were meant for a flag
// and stand for none of the given commands'.
func (e environment) unknown(cmds ...*cobra.Command) error {
	known := make(map[string]bool)
	for _, cmd := range cmds {
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			for _, name := range flag.Annotations[envPrefix] {
				known[name] = true
			}
		})
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if known[name] || serviceLink.MatchString(name) {
			continue
		}
		nearest := slices.MinFunc(slices.Sorted(maps.Keys(known)), func(a, b string) int {
			return cmp.Compare(distance(a, name), distance(b, name))
		})
		meant := ""
		if distance(nearest, name) <= maxSlip {
			meant = fmt.Sprintf("; is %s meant?", nearest)
		}
		errs = append(errs, usagef("%s is set in the environment and stands for no flag%s", name, meant))
	}
	return errors.Join(errs...)
}

// distance is the number of letters to insert, remove or replace to get from one word
// to another.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
