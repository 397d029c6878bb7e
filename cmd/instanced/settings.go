package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/config"
)

// configKey is the annotation of a flag that holds its key in the configuration file.
const configKey = "config"

// section declares flags that are settings: they have a variable, and a key in a section of the
// configuration file, which is the name of the flag without a prefix.
func section(flags *pflag.FlagSet, name, prefix string, declare func(flags *pflag.FlagSet)) {
	declared := pflag.NewFlagSet(name, pflag.ContinueOnError)
	declared.SortFlags = false
	declare(declared)
	cli.InEnvironment(declared)
	declared.VisitAll(func(flag *pflag.Flag) {
		key := strings.TrimPrefix(flag.Name, prefix)
		if name != "" {
			key = name + "." + key
		}
		flag.Annotations[configKey] = []string{key}
	})
	flags.AddFlagSet(declared)
}

// keyOf returns the key of a setting, or "" for other flags.
func keyOf(flag *pflag.Flag) string {
	if keys := flag.Annotations[configKey]; len(keys) > 0 {
		return keys[0]
	}
	return ""
}

// textsOf returns a value as texts that set it again, one after the other.
func textsOf(value pflag.Value) []string {
	if tags, ok := value.(*manageFilter); ok {
		return tags.tags()
	}
	return []string{value.String()}
}

// kindOf returns the type of a setting in the file.
func kindOf(flag *pflag.Flag) config.Kind {
	switch flag.Value.Type() {
	case "bool":
		return config.Switch
	case "number":
		return config.Number
	case "size", "duration":
		return config.Quantity
	case "urls", "tag":
		return config.List
	}
	return config.Text
}

// whatOf describes the value of a setting in the file.
func whatOf(flag *pflag.Flag) string {
	if kind := kindOf(flag); kind != config.Quantity {
		return kind.String()
	}
	return "a " + flag.Value.Type()
}

// setTexts sets a flag to what the configuration file has.
func setTexts(flags *pflag.FlagSet, flag *pflag.Flag, texts []string) error {
	if flag.Value.Type() == "urls" {
		if slices.ContainsFunc(texts, func(text string) bool { return text == "" || strings.Contains(text, ",") }) {
			return errors.New("each item of the list must be one URL")
		}
		texts = []string{strings.Join(texts, ",")}
	}
	for _, text := range texts {
		if err := flags.Set(flag.Name, text); err != nil {
			return cli.ReasonOf(err)
		}
	}
	return nil
}

// shown returns a value for people, without passwords.
func shown(flag *pflag.Flag) string { return strings.Join(shownTexts(flag), ",") }

// shownTexts returns the items of a list, or one text, without passwords.
func shownTexts(flag *pflag.Flag) []string {
	switch text := flag.Value.String(); flag.Value.Type() {
	case "url", "urls":
		if text == "" && flag.Value.Type() == "urls" {
			return nil
		}
		return strings.Split(masked(text), ",")
	case "tag":
		return textsOf(flag.Value)
	case secret:
		return []string{hidden(text)}
	default:
		return []string{text}
	}
}

// secret is the type of a setting that is not shown, and not accepted on the command line.
const secret = "secret"

// hidden stands for a secret.
func hidden(text string) string {
	if text == "" {
		return ""
	}
	return "xxxxx"
}

// masked returns comma-separated URLs without their passwords.
func masked(text string) string {
	urls := strings.Split(text, ",")
	for i, u := range urls {
		parsed, err := url.Parse(u)
		if err == nil && parsed.User != nil {
			urls[i] = parsed.Redacted()
		} else if at := strings.LastIndexByte(u, '@'); err != nil && at >= 0 {
			urls[i] = "xxxxx" + u[at:] // what is before it may have a password
		}
	}
	return strings.Join(urls, ",")
}

// source is where the value of a setting came from.
type source struct {
	// origin is default, file, environment or flag.
	origin string
	// at is the position in the file, the name of the variable, or the flag.
	at string
	// value is the text of the value there, as it is shown.
	value string
}

// The origins of a setting.
const (
	fromDefault     = "default"
	fromFile        = "file"
	fromEnvironment = "environment"
	fromFlag        = "flag"
)

// String returns the place, or "default".
func (s source) String() string { return cmp.Or(s.at, fromDefault) }

// sources are where settings came from by the name of the flag, the one that counts first.
// A setting without any has its default.
type sources map[string][]source

// of returns where the value of a setting came from.
func (s sources) of(flag *pflag.Flag) source {
	if all := s[flag.Name]; len(all) > 0 {
		return all[0]
	}
	return source{origin: fromDefault}
}

// name returns how a message calls a setting: by its flag, by its key if the file has it, or by its
// variable if it has no other name.
func (s sources) name(flag *pflag.Flag) string {
	switch from := s.of(flag); {
	case from.origin == fromFile:
		return from.at + ": " + keyOf(flag)
	case flag.Value.Type() == secret:
		return from.at
	}
	return "--" + flag.Name
}

// add records a further source of a setting, of lower precedence than the ones before.
func (s sources) add(flag *pflag.Flag, from source) { s[flag.Name] = append(s[flag.Name], from) }

// addConfig adds --config to a verb that has settings.
func (t *terminal) addConfig(cmd *cobra.Command) {
	own := pflag.NewFlagSet("config", pflag.ContinueOnError)
	own.StringVar(&t.configFile, "config", "", "YAML `file` of settings; flags and environment variables take precedence over it")
	cli.InEnvironment(own)
	cmd.Flags().AddFlagSet(own)
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(fmt.Sprintf("the completion of a flag: %v", err))
	}
}

// applySettings sets the flags of a verb from the environment and from the file of --config,
// unless the command line has them.
func (t *terminal) applySettings(cmd *cobra.Command) error {
	flags := cmd.Flags()
	t.sources = make(sources)
	var err error
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed && flag.Value.Type() == secret {
			err = cli.Usagef("--%s is not accepted on the command line, which every user of this machine can read; use --%s-file or %s",
				flag.Name, flag.Name, cli.EnvName(flag.Name))
		}
		if flag.Changed {
			t.sources.add(flag, source{origin: fromFlag, at: "--" + flag.Name, value: shown(flag)})
		}
	})
	if err != nil {
		return err
	}
	if err := t.Environ.Apply(flags, cli.Given(cmd)); err != nil {
		return err
	}
	t.sources.addEnvironment(t.Environ, flags)
	if flags.Lookup("config") == nil || t.configFile == "" {
		return nil
	}
	data, err := config.Read(t.configFile)
	if err != nil {
		return cli.Usagef("%v", err)
	}
	return t.sources.applyFile(flags, t.configFile, data)
}

// addEnvironment records which settings the environment has, in effect or not.
func (s sources) addEnvironment(environ cli.Environment, flags *pflag.FlagSet) {
	flags.VisitAll(func(flag *pflag.Flag) {
		value, ok := environ[cli.EnvName(flag.Name)]
		if !ok || keyOf(flag) == "" {
			return
		}
		switch flag.Value.Type() {
		case "url", "urls":
			value = masked(value)
		case secret:
			value = hidden(value)
		}
		s.add(flag, source{origin: fromEnvironment, at: cli.EnvName(flag.Name), value: value})
	})
}

// applyFile sets the flags that have a key in a file and no other source. The whole file is
// checked, also for settings that flags do not have or that have another source.
func (s sources) applyFile(flags *pflag.FlagSet, name string, data []byte) error {
	var scratch serveConfig
	all := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	scratch.bind(all)
	byKey := make(map[string]*pflag.Flag)
	var known []config.Setting
	all.VisitAll(func(flag *pflag.Flag) {
		byKey[keyOf(flag)] = flag
		known = append(known, config.Setting{
			Key: keyOf(flag), Alias: flag.Name, Kind: kindOf(flag), What: whatOf(flag), Secret: flag.Value.Type() == secret,
			Accept: func(texts []string) error { return setTexts(all, flag, texts) },
		})
	})
	values, err := config.Parse(name, data, known)
	if err != nil {
		return cli.Usagef("%v", err)
	}
	for _, v := range values {
		parsed := byKey[v.Key]
		flag := flags.Lookup(parsed.Name)
		if flag == nil {
			continue
		}
		if len(s[flag.Name]) == 0 {
			if err := setTexts(flags, flag, v.Texts); err != nil {
				return cli.Usagef("%s:%d:%d: %s: %v", name, v.Line, v.Column, v.Key, err)
			}
		}
		s.add(flag, source{origin: fromFile, at: fmt.Sprintf("%s:%d:%d", name, v.Line, v.Column), value: shown(parsed)})
	}
	return nil
}

// settings are the effective settings of the service and where they came from.
type settings struct {
	flags   *pflag.FlagSet
	sources sources
	// file is the configuration file; "" without one.
	file string
}

// isDefault reports whether a setting has its default because nothing else sets it.
func (s *settings) isDefault(flag string) bool {
	return s.sources.of(s.flags.Lookup(flag)).origin == fromDefault
}

// reread returns the settings with the file read again, and flags and environment as they
// were.
func (s *settings) reread(environ cli.Environment) (serveConfig, *settings, error) {
	var cfg serveConfig
	next := &settings{flags: pflag.NewFlagSet("serve", pflag.ContinueOnError), sources: make(sources), file: s.file}
	cfg.bind(next.flags)
	var err error
	next.flags.VisitAll(func(flag *pflag.Flag) {
		old := s.flags.Lookup(flag.Name)
		from := s.sources.of(old)
		if from.origin != fromFlag && from.origin != fromEnvironment {
			return
		}
		for _, text := range textsOf(old.Value) {
			err = errors.Join(err, next.flags.Set(flag.Name, text))
		}
		if from.origin == fromFlag {
			next.sources.add(flag, from)
		}
	})
	if err != nil {
		return cfg, nil, err
	}
	next.sources.addEnvironment(environ, next.flags)
	data, err := config.Read(s.file)
	if err == nil {
		err = next.sources.applyFile(next.flags, s.file, data)
	}
	if err == nil {
		err = cfg.check(next.flags, next.sources)
	}
	return cfg, next, err
}
