package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/cli"
)

// endsAtOnce runs serve after a shell command, and returns what it says when it does not start.
func endsAtOnce(t *testing.T, before string, env []string, args ...string) (stderr string, status int) {
	t.Helper()
	cmd := afterCommand(before, append([]string{"serve", "--listen", "127.0.0.1:0", "--log-format", "text"}, args...)...)
	cmd.Env = append(awsEnvironment(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its status is returned
	}()
	select {
	case <-ended:
	case <-patient(t).Done():
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("it runs:\n%s", errs.String())
	}
	return errs.String(), cmd.ProcessState.ExitCode()
}

// endsSaying checks that serve does not start, and that all it says is one sentence beside its log.
func endsSaying(t *testing.T, sentence, before string, env []string, args ...string) {
	t.Helper()
	stderr, status := endsAtOnce(t, before, env, args...)
	var sentences []string
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "time=") {
			sentences = append(sentences, strings.TrimSuffix(line, "\n"))
		}
	}
	if want := regexp.MustCompile("^instanced: " + sentence + "$"); status != cli.ExitInternal || len(sentences) != 1 || !want.MatchString(sentences[0]) {
		t.Errorf("exit status %d, want %d and %q:\n%s", status, cli.ExitInternal, want, stderr)
	}
}

// namespaces returns a shell command that runs commands in namespaces of their own, or skips the
// test where they cannot be had.
func namespaces(t *testing.T, flags, commands string) string {
	t.Helper()
	before := "unshare --map-root-user " + flags + " sh -c '" + commands + ` && exec "$@"' sh`
	if said, err := exec.Command("sh", "-c", before+" true").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: unshare %s is not permitted here: %v %s", flags, err, said)
	}
	return "set -- " + before + ` "$@"`
}

// underRace reports whether the race detector is built in, which takes address space and memory
// of its own.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// limitIn returns a number of the line of the log that has the limits.
func limitIn(t *testing.T, log, key string) int {
	t.Helper()
	found := regexp.MustCompile(`msg="limits of the process".* ` + key + `=(\d+)`).FindStringSubmatch(log)
	if found == nil {
		t.Fatalf("there is no %s in the log:\n%s", key, log)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFewOpenFilesLowerTheLimitOfConnections(t *testing.T) {
	t.Parallel()
	s := runServiceAfter(t, "ulimit -n 64", nil)
	if connections := limitIn(t, s.log(), "max_connections"); connections != 16 || !strings.Contains(s.log(), "level=WARN") ||
		!strings.Contains(s.log(), "raise ulimit -n") || !strings.Contains(s.log(), "needed_open_files=5048") {
		t.Errorf("%d connections:\n%s", connections, s.log())
	}
	// All who come are served: idle connections make room. Those in between may be cut off.
	for range 40 {
		client := s.instances()
		eventually(t, "a call is answered", func() bool {
			_, err := client.DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{})
			if err != nil && status.Code(err) != codes.Unavailable {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	if strings.Contains(s.log(), "too many open files") {
		t.Errorf("files ran out:\n%s", s.log())
	}
}

// TestClientsOfTheAdminListenerCannotUseUpTheFiles opens many connections to it and leaves them
// idle.
func TestClientsOfTheAdminListenerCannotUseUpTheFiles(t *testing.T) {
	t.Parallel()
	flags, admin := withMetrics(t)
	s := runServiceAfter(t, "ulimit -n 64", nil, flags...)
	for range 100 {
		conn, err := net.Dial("tcp", admin)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	// It is accepted after all of the others.
	resp, err := http.Get("http://" + admin + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/livez: %s", resp.Status)
	}
	if _, err := s.instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{}); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log(), "too many open files") {
		t.Errorf("files ran out:\n%s", s.log())
	}
}

func TestTooFewOpenFilesAreSaidInOneSentence(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	endsSaying(t, `only 40 files may be open at once \(ulimit -n\), and the service needs 56; raise the limit, such as by ulimit -n 5048`,
		"ulimit -n 40", nil, "--data-dir", dir)
	endsSaying(t, `only 63 files may be open at once \(ulimit -n\), and the service needs 64; raise the limit, such as by ulimit -n 10048`,
		"ulimit -n 63", nil, "--data-dir", dir, "--ec2-listen", "127.0.0.1:0")
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory was touched: %v", err)
	}
}

func TestTheSoftLimitOfOpenFilesIsRaised(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	s := runServiceAfter(t, "ulimit -Sn 64", nil)
	if files := limitIn(t, s.log(), "open_files"); uint64(files) < limit.Max-1 {
		t.Errorf("%d of %d files may be open:\n%s", files, limit.Max, s.log())
	}
}

// TestTheServiceWorksIn256MiB starts instances of a fleet of 5,000, and describes them, beside
// subscribers.
func TestTheServiceWorksIn256MiB(t *testing.T) {
	t.Parallel()
	const memory, callers, rounds = 256 << 20, 8, 50
	fleet := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(fleet, []byte("instances: [{count: 5000, state: stopped}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, limit := range map[string]func(t *testing.T) (before string, env []string){
		"GOMEMLIMIT": func(*testing.T) (string, []string) { return "true", []string{"GOMEMLIMIT=256MiB"} },
		"cgroup": func(t *testing.T) (string, []string) {
			return "echo $$ > " + cgroupOf(t, memory) + "/cgroup.procs", nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			if underRace() {
				t.Skip("NOT TESTED: the race detector takes more memory than that")
			}
			before, env := limit(t)
			s := runServiceAfter(t, before, env, "--sim-speed", "0", "--sim-fleet", fleet)
			subscribe(t, s, 20)
			page, err := s.instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{PageSize: callers * rounds})
			if err != nil {
				t.Fatal(err)
			}
			var work sync.WaitGroup
			for caller := range callers {
				client, own := s.instances(), page.GetInstances()[caller*rounds:][:rounds]
				work.Go(func() {
					for _, i := range own {
						id := i.GetInstanceId()
						if _, err := client.StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}, ClientToken: id}); err != nil {
							t.Errorf("a start: %v", err)
							return
						}
						if _, err := client.DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{PageSize: 1000}); err != nil {
							t.Errorf("a description: %v", err)
							return
						}
					}
				})
			}
			work.Wait()
			select {
			case <-s.ended:
				t.Fatalf("it ended: %v", s.cmd.ProcessState)
			default:
			}
			info, err := s.instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if used := info.GetMemory().GetProcessBytes(); used > memory || used == 0 {
				t.Errorf("%d bytes are in use", used)
			}
		})
	}
}

// cgroupOf returns the directory of a new cgroup below that of the test, or skips the test
// where none can be made.
func cgroupOf(t *testing.T, memory int) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("NOT TESTED: there are no cgroups here: %v", err)
	}
	parent, file := "", ""
	for line := range strings.Lines(string(text)) {
		switch fields := strings.SplitN(strings.TrimSpace(line), ":", 3); {
		case len(fields) == 3 && slices.Contains(strings.Split(fields[1], ","), "memory"):
			parent, file = "/sys/fs/cgroup/memory"+fields[2], "memory.limit_in_bytes"
		case len(fields) == 3 && fields[0] == "0" && parent == "":
			parent, file = "/sys/fs/cgroup"+fields[2], "memory.max"
		}
	}
	dir, err := os.MkdirTemp(parent, "instanced-test-")
	if err != nil {
		t.Skipf("NOT TESTED: no cgroup can be made here: %v", err)
	}
	t.Cleanup(func() {
		eventually(t, "the cgroup can be removed", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(memory)), 0o600); err != nil {
		t.Skipf("NOT TESTED: no cgroup can be limited here: %v", err)
	}
	return dir
}

func TestTheLimitOfACgroupIsFollowed(t *testing.T) {
	t.Parallel()
	const memory = 1 << 30
	before := "echo $$ > " + cgroupOf(t, memory) + "/cgroup.procs"
	s := runServiceAfter(t, before, nil, "--journal-max-bytes", "2GiB")
	if !strings.Contains(s.log(), "memory_from=cgroup") || limitIn(t, s.log(), "memory_bytes") != memory/10*9 || limitIn(t, s.log(), "cgroup_bytes") != memory {
		t.Errorf("the log says:\n%s", s.log())
	}
	// GOMEMLIMIT goes first, also where it says that there is none.
	s = runServiceAfter(t, before, []string{"GOMEMLIMIT=off"})
	if !strings.Contains(s.log(), "memory_from=GOMEMLIMIT processors=") {
		t.Errorf("the log says:\n%s", s.log())
	}
}

func TestDefaultsFitTheMemoryAndWhatWasAskedForIsKept(t *testing.T) {
	t.Parallel()
	const gib, tokens = 1 << 30, 200_000
	for _, c := range []struct {
		memory               string
		args                 []string
		minBytes, maxBytes   int
		minTokens, maxTokens int
		warned               bool
	}{
		{"1GiB", nil, gib, gib, tokens, tokens, false},
		{"256MiB", nil, gib / 3, gib / 2, tokens / 3, tokens / 2, false},
		{"256MiB", []string{"--journal-max-bytes", "1GiB"}, gib, gib, tokens / 3, tokens / 2, true},
		{"256MiB", []string{"--max-client-tokens", "200000", "--journal-max-bytes", "100MiB"}, 100 << 20, 100 << 20, tokens, tokens, false},
		{"64MiB", []string{"--max-client-tokens", "1000000000"}, 1 << 20, 1 << 20, 1e9, 1e9, true},
	} {
		s := runServiceIn(t, []string{"GOMEMLIMIT=" + c.memory}, c.args...)
		bytes, kept := limitIn(t, s.log(), "journal_max_bytes"), limitIn(t, s.log(), "max_client_tokens")
		if bytes < c.minBytes || bytes > c.maxBytes || kept < c.minTokens || kept > c.maxTokens ||
			strings.Contains(s.log(), "a full journal may take more memory than there is") != c.warned {
			t.Errorf("%s %v: journal_max_bytes=%d max_client_tokens=%d\n%s", c.memory, c.args, bytes, kept, s.log())
		}
		s.kill()
	}
}

func TestTooLittleMemoryIsSaidInOneSentence(t *testing.T) {
	t.Parallel()
	endsSaying(t, `memory is limited to 32MiB \(GOMEMLIMIT\), and the service needs 64MiB`,
		"true", []string{"GOMEMLIMIT=32MiB"}, "--data-dir", filepath.Join(t.TempDir(), "data"))
}

func TestTooLittleAddressSpaceIsSaidInOneSentence(t *testing.T) {
	t.Parallel()
	if underRace() {
		t.Skip("NOT TESTED: the race detector needs more address space than that")
	}
	endsSaying(t, `the address space is limited to 4GiB \(ulimit -v\), and the embedded journal needs 12GiB, hardly any of which is memory; `+
		`run ulimit -v unlimited, and limit memory by GOMEMLIMIT or a cgroup`,
		"ulimit -v 4194304", nil, "--data-dir", filepath.Join(t.TempDir(), "data"))
}

func TestAHomeThatCannotBeWrittenIsSaidInOneSentence(t *testing.T) {
	t.Parallel()
	for name, home := range map[string]struct{ before, home, reason string }{
		"missing":   {"true", "/proc/nowhere", "no such file or directory"},
		"file":      {"true", "/dev/null", "not a directory"},
		"read-only": {"", "/mnt", "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			if home.before == "" {
				home.before = readOnlyMount(t)
			}
			endsSaying(t, "the data directory "+home.home+"/.local/state/instanced cannot be created: "+home.reason+"; choose another directory with --data-dir",
				home.before, []string{"HOME=" + home.home, "XDG_STATE_HOME="})
		})
	}
	t.Run("none", func(t *testing.T) {
		stderr, status := endsAtOnce(t, "unset HOME", []string{"XDG_STATE_HOME="})
		if status != cli.ExitUsage || stderr != "instanced: there is no home directory to keep the journal in; give another directory with --data-dir\n" {
			t.Errorf("exit status %d: %s", status, stderr)
		}
	})
	t.Run("not needed", func(t *testing.T) {
		runServiceAfter(t, readOnlyMount(t), []string{"HOME=/mnt"})
	})
}

// readOnlyMount returns a command after which /mnt is an empty directory that nothing can be written to.
func readOnlyMount(t *testing.T) string {
	t.Helper()
	return namespaces(t, "--mount", "mount -t tmpfs -o ro none /mnt")
}

func TestWithoutIPv6TheServiceListensOnIPv4(t *testing.T) {
	t.Parallel()
	before := namespaces(t, "--net", "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
	for _, address := range []string{"127.0.0.1:0", "localhost:0"} {
		s := runServiceAfter(t, before, nil, "--listen", address, "--ec2-listen", address)
		if !strings.HasPrefix(s.address, "127.0.0.1:") {
			t.Errorf("on %s it listens on %s", address, s.address)
		}
	}
	data := filepath.Join(t.TempDir(), "data")
	endsSaying(t, `cannot listen on \[::1\]:0: cannot assign requested address, so this machine does not have the address, or no IPv6; choose another address with --listen`,
		before, nil, "--listen", "[::1]:0", "--data-dir", data)
	endsSaying(t, `cannot listen on \[::1\]:0: cannot assign requested address, so this machine does not have the address, or no IPv6; choose another address with --ec2-listen`,
		before, nil, "--ec2-listen", "[::1]:0", "--data-dir", data)
	endsSaying(t, `cannot listen on \[::1\]:0: cannot assign requested address, so this machine does not have the address, or no IPv6; choose another address with --admin-listen`,
		before, nil, "--admin-listen", "[::1]:0", "--data-dir", data)
}

// TestWithoutANetworkTheClientSaysWhy runs service and client where not even loopback is up.
func TestWithoutANetworkTheClientSaysWhy(t *testing.T) {
	t.Parallel()
	before := namespaces(t, "--net", "true")
	runServiceAfter(t, before, nil)
	cmd := afterCommand(before, "describe", "--server", "127.0.0.1:50051")
	cmd.Env = awsEnvironment()
	said, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != cli.ExitUnavailable || !strings.HasPrefix(string(said), "instanced: cannot reach the service at 127.0.0.1:50051 (") ||
		!strings.Contains(string(said), "network is unreachable") {
		t.Errorf("%v: %s", err, said)
	}
}

// TestOutputThatCannotBeWrittenIsAnError writes what each verb prints to a full device.
func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	defer func() { _ = full.Close() }()
	s := runService(t, "--sim-speed", "0")
	const id = "i-1234567890abcdef0"
	for _, args := range []string{
		"--help", "help start", "serve --help", "completion bash", "version --client", "config print", "config print -o json", "config check /dev/null", "doctor",
		"version", "describe", "describe -q", "describe -o wide", "describe -o json", "start " + id, "start " + id + " -o json", "start --wait " + id,
		"wait --for running " + id, "wait --for running -o json " + id, "history " + id, "history -o json " + id, "watch", "watch -o json", "verify --for 1s", "reboot " + id,
	} {
		cmd := exec.CommandContext(patient(t), "instanced", strings.Fields(args)...)
		cmd.Env = append(awsEnvironment(), "INSTANCED_SERVER="+s.address)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != cli.ExitInternal || !strings.Contains(stderr.String(), "cannot write to standard output: no space left on device") {
			t.Errorf("%s: %v\n%s", args, err, stderr.String())
		}
	}
}
