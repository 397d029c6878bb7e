package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/config"
)

func newConfigCommand(t *terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print or check the settings of the service",
		Long: `Settings of "instanced serve" come from, in the order of precedence, flags, environment
variables, the file of --config, and defaults. "instanced config print" shows what is in
effect and where it came from; "instanced config check" checks a file.`,
		Example: t.Examples("instanced config print --config instanced.yaml", "instanced config check instanced.yaml"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.Usagef("unknown subcommand %q; \"instanced config --help\" lists the subcommands", args[0])
			}
			return nil
		},
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newConfigPrintCommand(t), newConfigCheckCommand(t))
	return cmd
}

func newConfigPrintCommand(t *terminal) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "print [flags]",
		Short: "Print the effective settings, and where each came from",
		Long: `Print shows the settings that "instanced serve" would have with the same flags and the same
environment: as YAML, which --config accepts, with the source of each value as a comment. What
the value takes precedence over is there as well. Passwords are replaced by xxxxx.
Settings of the backend that is not used are left out.`,
		Example: t.Examples(
			"instanced config print",
			"instanced config print --config instanced.yaml --log-level debug",
			"instanced config print -o json | jq -r '.settings[] | select(.origin != \"default\") | .key'",
		),
		Args:                  cli.NoArgs,
		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	cfg.bind(flags)
	t.addConfig(cmd)
	t.AddOutput(cmd)
	cli.CompleteWords(cmd, "backend", backendSimulator, backendEC2)
	cli.CompleteWords(cmd, "log-format", logAuto, logText, logJSON)
	cli.CompleteWords(cmd, "log-level", "debug", "info", "warn", "error")
	cmd.RunE = func(*cobra.Command, []string) error {
		t.Accept()
		if err := cfg.check(flags, t.sources); err != nil {
			return err
		}
		used := cfg.used(flags)
		if t.JSON() {
			return t.printSettingsJSON(used)
		}
		return printSettings(t.Stdout, used, t.sources)
	}
	return cmd
}

func newConfigCheckCommand(t *terminal) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Long: `Check reports every problem of a configuration file with its line, or that there is none. The
settings are then checked together, with those that the environment variables of
"instanced serve" have here. Files that a setting names are not read.

Exits with 2 if there is a problem.`,
		Example: t.Examples("instanced config check instanced.yaml"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usagef("config check takes one file, got %d", len(args))
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			t.Accept()
			data, err := config.Read(args[0])
			if err != nil {
				return cli.Usagef("%v", err)
			}
			var cfg serveConfig
			flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			cfg.bind(flags)
			if err := t.Environ.Apply(flags, func(*pflag.Flag) bool { return false }); err != nil {
				return err
			}
			from := make(sources)
			from.addEnvironment(t.Environ, flags)
			if err := from.applyFile(flags, args[0], data); err != nil {
				return err
			}
			if err := cfg.check(flags, from); err != nil {
				return err
			}
			n := 0
			for _, all := range from {
				if all[len(all)-1].origin == fromFile {
					n++
				}
			}
			_, err = fmt.Fprintf(t.Stdout, "%s is valid: %s\n", args[0], cli.Counted(n, "setting"))
			return err
		},
	}
}

// used returns the settings that have an effect: not the settings of the other backend, nor the
// directory of a journal that is in etcd, nor how to reach an etcd that it is not in.
func (cfg *serveConfig) used(flags *pflag.FlagSet) []*pflag.Flag {
	var used []*pflag.Flag
	flags.VisitAll(func(flag *pflag.Flag) {
		key := keyOf(flag)
		switch {
		case key == "",
			strings.HasPrefix(key, "simulator.") && cfg.backend != backendSimulator,
			strings.HasPrefix(key, "aws.") && cfg.backend != backendEC2,
			flag.Name == "data-dir" && len(cfg.etcdEndpoints) > 0,
			slices.Contains(etcdSecurity, flag.Name) && len(cfg.etcdEndpoints) == 0:
			return
		}
		used = append(used, flag)
	})
	return used
}

// comment says where a value came from and what it takes precedence over.
func (s sources) comment(flag *pflag.Flag) string {
	parts := []string{s.of(flag).String()}
	for i, from := range s[flag.Name] {
		if i > 0 {
			parts = append(parts, fmt.Sprintf("takes precedence over %s: %s", from, from.value))
		}
	}
	return cli.Printable(strings.Join(parts, "; "))
}

// printSettings prints settings as YAML.
func printSettings(w io.Writer, used []*pflag.Flag, from sources) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, flag := range used {
		path := strings.Split(keyOf(flag), ".")
		group := root
		for _, name := range path[:len(path)-1] {
			group = below(group, name)
		}
		value := &yaml.Node{Kind: yaml.ScalarNode}
		switch kind := kindOf(flag); kind {
		case config.List:
			value.Kind, value.Style = yaml.SequenceNode, yaml.FlowStyle
			for _, text := range shownTexts(flag) {
				item := &yaml.Node{}
				item.SetString(text)
				value.Content = append(value.Content, item)
			}
		case config.Number, config.Switch:
			value.Value = flag.Value.String()
		case config.Text, config.Quantity:
			value.SetString(shown(flag))
		}
		value.LineComment = from.comment(flag)
		group.Content = append(group.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: path[len(path)-1]}, value)
	}
	var text bytes.Buffer // the encoder hides why it cannot write
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(root), e.Close()); err != nil {
		return err
	}
	_, err := text.WriteTo(w)
	return err
}

// below returns the mapping at a key of a mapping, a new one if there is none.
func below(group *yaml.Node, name string) *yaml.Node {
	for i := 0; i < len(group.Content); i += 2 {
		if group.Content[i].Value == name {
			return group.Content[i+1]
		}
	}
	child := &yaml.Node{Kind: yaml.MappingNode}
	group.Content = append(group.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, child)
	return child
}

// settingDocument is a setting in -o json.
type settingDocument struct {
	Key string `json:"key"`
	// Value is a string, or a list of strings, of a number as of a text.
	Value  any    `json:"value"`
	Origin string `json:"origin"`
	Source string `json:"source,omitempty"`
	// Overrides are the sources that this one takes precedence over.
	Overrides []overrideDocument `json:"overrides,omitempty"`
}

type overrideDocument struct {
	Value  string `json:"value"`
	Origin string `json:"origin"`
	Source string `json:"source"`
}

func (t *terminal) printSettingsJSON(used []*pflag.Flag) error {
	document := struct {
		ConfigFile string            `json:"config_file,omitempty"`
		Settings   []settingDocument `json:"settings"`
	}{t.configFile, []settingDocument{}}
	for _, flag := range used {
		from := t.sources.of(flag)
		d := settingDocument{Key: keyOf(flag), Value: shown(flag), Origin: from.origin, Source: from.at}
		if kindOf(flag) == config.List {
			d.Value = append([]string{}, shownTexts(flag)...)
		}
		for i, other := range t.sources[flag.Name] {
			if i > 0 {
				d.Overrides = append(d.Overrides, overrideDocument{Value: other.value, Origin: other.origin, Source: other.at})
			}
		}
		document.Settings = append(document.Settings, d)
	}
	raw, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return t.PrintRaw(raw)
}
