package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/config"
)

const configurationDocument = "docs/configuration.md"

// TestDocumentedSettingsAreTheOnesOfServe compares the table of the document with the flags of
// serve, which is what to put there if they differ.
func TestDocumentedSettingsAreTheOnesOfServe(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(repository, configurationDocument))
	if err != nil {
		t.Fatal(err)
	}
	var cfg serveConfig
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	cfg.bind(flags)
	var want []string
	flags.VisitAll(func(flag *pflag.Flag) {
		value := flag.DefValue
		if flag.Name == "data-dir" {
			value = "`~/.local/state/instanced`"
		}
		reload := ""
		if changeable[flag.Name] != nil {
			reload = "yes"
		}
		name := "`--" + flag.Name + "`"
		if flag.Hidden {
			name = "-"
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | `%s` | %s | %s | %s |",
			keyOf(flag), name, cli.EnvName(flag.Name), whatOf(flag), cmp.Or(value, "-"), reload))
	})
	var got []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") && strings.Contains(line, "| `"+cli.EnvPrefix) {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-serve +document):\n%s\nthe table is:\n%s", configurationDocument, diff, strings.Join(want, "\n"))
	}
}

// TestDocumentedConfigurationIsValid applies each file that the document shows.
func TestDocumentedConfigurationIsValid(t *testing.T) {
	t.Parallel()
	files := blocks(t, configurationDocument, "yaml")
	if len(files) == 0 {
		t.Fatal("the document shows no file")
	}
	for _, file := range files {
		var cfg serveConfig
		flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		cfg.bind(flags)
		from := make(sources)
		if err := from.applyFile(flags, "instanced.yaml", []byte(file)); err != nil {
			t.Errorf("%v\n%s", err, file)
			continue
		}
		if err := cfg.check(flags, from); err != nil {
			t.Errorf("%v\n%s", err, file)
		}
	}
}

// TestEverySettingCanBeInAFile writes each setting's default, or an example, into a file by its
// key, and gets it back.
func TestEverySettingCanBeInAFile(t *testing.T) {
	t.Parallel()
	examples := map[string]string{
		"aws-endpoint-url": "https://example.com", "sqs-queue-url": "https://example.com/q",
		"assume-role-arn": "arn:aws:iam::123456789012:role/instanced",
		"etcd-endpoints":  "http://127.0.0.1:2379", "manage-filter": "team=payments",
		"ec2-listen": "127.0.0.1:8580", "admin-listen": "127.0.0.1:9090",
		"policy": "allow-authenticated",
	}
	var table serveConfig
	declared := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	table.bind(declared)
	declared.VisitAll(func(flag *pflag.Flag) {
		value := cmp.Or(examples[flag.Name], flag.DefValue, "word")
		literal := value
		switch kindOf(flag) {
		case config.List:
			literal = fmt.Sprintf("[%q]", value)
		case config.Text, config.Quantity:
			literal = fmt.Sprintf("%q", value)
		case config.Number, config.Switch:
		}
		path := strings.Split(keyOf(flag), ".")
		file := strings.Join(path, ": {") + ": " + literal + strings.Repeat("}", len(path)-1)
		var cfg serveConfig
		flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		cfg.bind(flags)
		from := make(sources)
		if err := from.applyFile(flags, "x.yaml", []byte(file)); err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		set := flags.Lookup(flag.Name)
		if got := set.Value.String(); got != value || !set.Changed || from.of(set).origin != fromFile {
			t.Errorf("%s: %s is %q from %v", file, flag.Name, got, from.of(set))
		}
	})
}
