package cli

import (
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

	"github.com/instanced/instanced/internal/config"
)

// EnvPrefix begins the names of all environment variables that set flags.
const EnvPrefix = "INSTANCED_"

// setting is the value of a flag, parsed by parse, whose errors say what is accepted.
type setting[T any] struct {
	target *T
	kind   string
	text   string
	parse  func(text string) (T, error)
}

// Bind declares a flag with a default, which parse must accept.
func Bind[T any](flags *pflag.FlagSet, target *T, name, kind, text, usage string, parse func(string) (T, error)) {
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

// Type returns the placeholder of the value in the help.
func (s *setting[T]) Type() string { return s.kind }

// Set parses and stores a new value.
func (s *setting[T]) Set(text string) error {
	value, err := s.parse(text)
	if err != nil {
		return err
	}
	*s.target, s.text = value, text
	return nil
}

// list is the value of a flag that takes one word or several, separated by commas, and
// may be repeated. parse must reject an empty word: pflag's own lists take it for an empty
// list, which as a filter would select everything.
type list[T any] struct {
	target *[]T
	kind   string
	words  []string
	given  bool
	parse  func(word string) (T, error)
}

// bindList declares a flag of words. words are its default.
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

// Type returns the placeholder of the value in the help.
func (l *list[T]) Type() string { return l.kind }

// Set adds words to the ones given before.
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

// someWord accepts any word but an empty one; what describes it in the error.
func someWord(what string) func(string) (string, error) {
	return func(word string) (string, error) {
		if word == "" {
			return "", fmt.Errorf("\"\" is not %s", what)
		}
		return word, nil
	}
}

// OneOf accepts one of the given words.
func OneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if slices.Contains(words, text) {
			return text, nil
		}
		return "", fmt.Errorf("%q is not one of %s", text, strings.Join(words, ", "))
	}
}

// ParseDuration accepts a duration that is not negative.
func ParseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration of 0 or more, such as 30s, 5m or 24h", text)
	}
	return d, nil
}

// ParsePositiveDuration accepts a duration above 0.
func ParsePositiveDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a duration above 0, such as 30s, 5m or 24h", text)
	}
	return d, nil
}

// maxCount bounds every count: twice as many still fit into the 32 bits of the wire format.
const maxCount = 1 << 30

// ParseCount accepts a whole number from minCount to maxCount.
func ParseCount(minCount int) func(string) (int, error) {
	return func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < minCount || n > maxCount {
			return 0, fmt.Errorf("%q is not a whole number from %d to %d", text, minCount, maxCount)
		}
		return n, nil
	}
}

// flagError turns the errors of cobra and pflag into messages that say what is accepted.
func flagError(err error) error {
	if _, ok := errors.AsType[*UsageError](err); ok {
		return err
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return Usagef("--%s: %v", e.GetFlag().Name, ReasonOf(e))
	}
	return Usagef("%v; --help lists the flags", err)
}

// ReasonOf returns the error of the value's own parser, and for a switch, which Go parses,
// what is accepted.
func ReasonOf(err error) error {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok && e.GetFlag().Value.Type() == "bool" {
		return fmt.Errorf("%q is neither true nor false", e.GetValue())
	}
	if cause := errors.Unwrap(err); cause != nil {
		return cause
	}
	return err
}

// Environment holds the variables that set flags, by their full name. Empty ones count as
// not set.
type Environment map[string]string

func newEnvironment(environ []string) Environment {
	e := make(Environment)
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && value != "" && strings.HasPrefix(name, EnvPrefix) {
			e[name] = value
		}
	}
	return e
}

// EnvName returns the name of the variable that sets a flag.
func EnvName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// InEnvironment gives flags a variable. It is for flags that configure; flags that say what a
// single command does have none.
func InEnvironment(flags *pflag.FlagSet) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Annotations == nil {
			flag.Annotations = make(map[string][]string)
		}
		flag.Annotations[EnvPrefix] = []string{EnvName(flag.Name)}
	})
}

// Apply sets flags from the environment, unless given reports that the command line has them.
func (e Environment) Apply(flags *pflag.FlagSet, given func(flag *pflag.Flag) bool) error {
	var errs []error
	flags.VisitAll(func(flag *pflag.Flag) {
		for _, name := range flag.Annotations[EnvPrefix] {
			value, ok := e[name]
			if !ok || given(flag) {
				continue
			}
			if err := flags.Set(flag.Name, value); err != nil {
				errs = append(errs, Usagef("%s: %v", name, ReasonOf(err)))
			}
		}
	})
	return errors.Join(errs...)
}

// Given returns a function that reports whether the command line has a flag of a verb.
func Given(cmd *cobra.Command) func(flag *pflag.Flag) bool {
	return func(flag *pflag.Flag) bool { return flag.Changed || givenBeforeVerb(cmd, flag.Name) }
}

// givenBeforeVerb reports whether the command line has a flag before the verb.
func givenBeforeVerb(cmd *cobra.Command, name string) bool {
	flag := cmd.Root().Flags().Lookup(name)
	return flag != nil && flag.Changed
}

// serviceLink matches what Kubernetes puts into the environment of every container when
// there is a service called "instanced". Source: Kubernetes, "Discovering services".
var serviceLink = regexp.MustCompile(`^INSTANCED_(SERVICE_(HOST|PORT)|PORT)(_|$)`)

// serviceSetting matches settings of the service alone that are spelled like others of the client.
var serviceSetting = regexp.MustCompile(`^INSTANCED_ETCD_`)

// Unknown returns an error for variables with EnvPrefix that set no flag of the given commands.
func (e Environment) Unknown(cmds ...*cobra.Command) error {
	return errors.Join(e.unused(cmds, func(name, nearest string) error {
		meant := ""
		if nearest != "" {
			meant = fmt.Sprintf("; did you mean %s?", nearest)
		}
		return Usagef("the environment variable %s sets no known flag%s", name, meant)
	})...)
}

// misspelt returns an error for variables with EnvPrefix that set no flag of the given commands,
// but are spelled like one that does. Others may be for instanced.
func (e Environment) misspelt(cmds ...*cobra.Command) error {
	return errors.Join(e.unused(cmds, func(name, nearest string) error {
		if nearest == "" || serviceSetting.MatchString(name) {
			return nil
		}
		return Usagef("the environment variable %s sets no known flag; did you mean %s?", name, nearest)
	})...)
}

// unused calls problem for each variable that sets no flag of the given commands, with the
// nearest one that does, or "".
func (e Environment) unused(cmds []*cobra.Command, problem func(name, nearest string) error) (errs []error) {
	known := make(map[string]bool)
	for _, cmd := range cmds {
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			for _, name := range flag.Annotations[EnvPrefix] {
				known[name] = true
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if known[name] || serviceLink.MatchString(name) {
			continue
		}
		nearest, _ := config.Nearest(name, slices.Sorted(maps.Keys(known)))
		errs = append(errs, problem(name, nearest))
	}
	return errs
}
