package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/cli"
)

// clientStories are the stories whose commands instancedctl has as well.
var clientStories = []string{
	"describe", "help", "history_and_watch", "outcome", "refused", "start_falls_back", "start_to_running", "terminal", "verify", "wait",
}

// ofService matches the name of the program, and the verb behind it if only instanced has it.
var ofService = regexp.MustCompile(`\binstanced\b( (config|dev-certs|doctor|serve|upgrade)\b)?`)

// TestClientStories runs the stories of a client with instancedctl, against a service that
// instanced runs. All that it prints is the same, except for its name.
func TestClientStories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range clientStories {
		story, err := os.ReadFile(filepath.Join("testdata", name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		replaced := ofService.ReplaceAllStringFunc(string(story), func(match string) string {
			if match == "instanced" {
				return "instancedctl"
			}
			return match
		})
		if err := os.WriteFile(filepath.Join(dir, name+".txtar"), []byte(replaced), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runStories(t, dir)
}

// instancedctl runs the program with an environment of its own.
func instancedctl(t *testing.T, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(patient(t), "instancedctl", args...)
	cmd.Env = append(awsEnvironment(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestInstancedctlHasAVerbOrSaysThatInstancedHasIt tries every verb of instanced.
func TestInstancedctlHasAVerbOrSaysThatInstancedHasIt(t *testing.T) {
	t.Parallel()
	listed, _, _ := instancedctl(t, nil, "__complete", "")
	for _, verb := range newRootCommand(&terminal{Terminal: cli.New("instanced")}).Commands() {
		name := verb.Name()
		if strings.Contains("\n"+listed, "\n"+name+"\t") {
			if _, stderr, status := instancedctl(t, nil, name, "--help"); status != cli.ExitOK || stderr != "" {
				t.Errorf("%s --help ended with %d: %s", name, status, stderr)
			}
			continue
		}
		want := "instancedctl: only instanced has the verb \"" + name + "\"; run \"instanced " + name + "\" where the service runs\n"
		for _, args := range [][]string{{name}, {name, "--help"}, {"--server", "a:1", name, "--data-dir", "x", "y"}, {"help", name}} {
			stdout, stderr, status := instancedctl(t, nil, args...)
			if diff := cmp.Diff(want, stderr); diff != "" || stdout != "" || status != cli.ExitUsage {
				t.Errorf("%q ended with %d, printed %q, and said (-want +got):\n%s", args, status, stdout, diff)
			}
		}
	}
}

// TestInstancedctlAcceptsTheEnvironmentOfTheService: where the variables of serve are set for
// the service, instancedctl runs too. A misspelled variable of its own is still named.
func TestInstancedctlAcceptsTheEnvironmentOfTheService(t *testing.T) {
	t.Parallel()
	env := []string{"INSTANCED_SERVER=127.0.0.1:1"}
	own := []string{"server", "output", "timeout", "principal", "tls-ca", "tls-cert", "tls-key", "tls-server-name"}
	variables := 0
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			for _, name := range flag.Annotations[cli.EnvPrefix] {
				if !slices.Contains(own, flag.Name) {
					env = append(env, name+"=anything")
					variables++
				}
			}
		})
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(newRootCommand(&terminal{Terminal: cli.New("instanced")}))
	if variables < 30 {
		t.Fatalf("serve has only %d variables", variables)
	}
	if _, stderr, status := instancedctl(t, env, "version", "--client"); status != cli.ExitOK || stderr != "" {
		t.Errorf("it ended with %d: %s", status, stderr)
	}
	_, stderr, status := instancedctl(t, append(env, "INSTANCED_SEVRER=127.0.0.1:1"), "version", "--client")
	if want := "instancedctl: the environment variable INSTANCED_SEVRER sets no known flag; did you mean INSTANCED_SERVER?\n"; stderr != want || status != cli.ExitUsage {
		t.Errorf("it ended with %d: %swant %s", status, stderr, want)
	}
}
