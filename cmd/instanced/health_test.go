package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/addrtest"
)

// etcdProgram is an etcd with a directory and an address for arguments. It ends with its
// standard input.
const etcdProgram = "instanced-test-etcd"

func serveEtcd() {
	config := embed.NewConfig()
	config.Name = "external"
	config.Dir = os.Args[1]
	config.LogLevel = "panic"
	config.ListenPeerUrls = nil
	config.ListenClientUrls = []url.URL{{Scheme: "http", Host: os.Args[2]}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.TickMs, config.ElectionMs = 10, 100
	e, err := embed.StartEtcd(config)
	if err != nil {
		panic(err)
	}
	<-e.Server.ReadyNotify()
	_, _ = os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	e.Close()
}

// runEtcd runs an etcd in a process of its own until the test ends.
func runEtcd(t *testing.T) (endpoint string, process *os.Process) {
	t.Helper()
	address := addrtest.Free(t)
	child := exec.Command(etcdProgram, t.TempDir(), address)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stderr = t.Output()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill() // also if it is stopped
		_ = child.Wait()
		_ = in.Close()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("etcd does not start: %q, %v", line, err)
	}
	return "http://" + address, child.Process
}

// probe asks an admin endpoint, and returns 0 if it cannot be reached.
func probe(address, path string) (status int, body string) {
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// health asks for the health of a name until the test ends, and returns what was said last.
func health(s *service, name string) (last func() grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.t.Helper()
	client := grpc_health_v1.NewHealthClient(s.conn())
	return func() grpc_health_v1.HealthCheckResponse_ServingStatus {
		resp, err := client.Check(s.t.Context(), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil {
			return grpc_health_v1.HealthCheckResponse_UNKNOWN
		}
		return resp.GetStatus()
	}
}

const (
	serving    = grpc_health_v1.HealthCheckResponse_SERVING
	notServing = grpc_health_v1.HealthCheckResponse_NOT_SERVING
)

func wantLines(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)^" + p + "$").MatchString(text) {
			t.Errorf("no line matches %s in:\n%s", p, text)
		}
	}
}

func TestReadinessOfOneProcessFromStartToDrain(t *testing.T) {
	t.Parallel()
	flags, address := withMetrics(t)
	s := runService(t, append(flags, "--sim-speed", "1")...)
	status, body := probe(address, "/readyz?verbose")
	if status != http.StatusOK {
		t.Errorf("/readyz: %d", status)
	}
	wantLines(t, body, `\[\+\]startup ok`, `\[\+\]drain ok`, `\[\+\]journal ok [0-9.]+s ago`, `\[\+\]writable ok [0-9.]+s ago`,
		`\[\+\]owner ok [0-9.]+s ago: this process`, `\[\+\]backend ok [0-9.]+s ago`, `\[\+\]reconcile ok [0-9.]+s ago`,
		`\[\+\]disk ok [0-9.]+s ago: [0-9]+ MiB free, 512 MiB needed`, `readyz check passed`)
	if status, body := probe(address, "/livez?verbose"); status != http.StatusOK || body != "[+]loops ok\nlivez check passed\n" {
		t.Errorf("/livez: %d %s", status, body)
	}
	commands := health(s, "instanced.v1.commands")
	eventually(t, "commands are taken", func() bool { return commands() == serving })

	// A reboot that is answered late holds up the drain, during which the probes answer.
	if _, err := instancedv1.NewSimulatorServiceClient(s.conn()).SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{
		{Kind: instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, Probability: 1, Delay: durationpb.New(5 * time.Second)},
	}}); err != nil {
		t.Fatal(err)
	}
	listed, err := s.instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{
		Filter: &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING}},
	})
	if err != nil || len(listed.GetInstances()) == 0 {
		t.Fatal("there is no running instance", err)
	}
	rebooted := make(chan error, 1)
	client := s.instances()
	go func() {
		_, err := client.RebootInstances(context.Background(), &instancedv1.RebootInstancesRequest{InstanceIds: []string{listed.GetInstances()[0].GetInstanceId()}})
		rebooted <- err
	}()
	eventually(t, "the reboot is in flight", func() bool {
		_, stacks := probe(address, "/debug/pprof/goroutine?debug=1")
		return strings.Contains(stacks, "(*service).RebootInstances")
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that it drains", func() bool {
		status, body := probe(address, "/readyz")
		return status == http.StatusServiceUnavailable && regexp.MustCompile(`(?m)^\[-\]drain failed [0-9.]+s: the process is shutting down$`).MatchString(body)
	})
	if status, _ := probe(address, "/livez"); status != http.StatusOK {
		t.Errorf("/livez while it drains: %d", status)
	}
	if err := <-rebooted; err != nil {
		t.Errorf("the reboot in flight: %v", err)
	}
}

func TestAJournalThatIsAwayMakesUnreadyButNotDead(t *testing.T) {
	t.Parallel()
	endpoint, etcd := runEtcd(t)
	flags, address := withMetrics(t)
	s := runServiceOn(t, endpoint, flags...)
	followerFlags, follower := withMetrics(t)
	f := runServiceOn(t, endpoint, followerFlags...)

	status, body := probe(follower, "/readyz?verbose")
	if status != http.StatusOK {
		t.Errorf("/readyz of the follower: %d", status)
	}
	wantLines(t, body, `\[\+\]journal ok [0-9.]+s ago`, `\[\+\]writable ok: left to the owner`, `\[\+\]owner ok [0-9.]+s ago: `+regexp.QuoteMeta(s.address),
		`\[\+\]backend ok: left to the owner`, `\[\+\]reconcile ok: left to the owner`, `\[\+\]disk ok: the journal is in an external etcd`)
	own, others := health(s, "instanced.v1.commands"), health(f, "instanced.v1.commands")
	if own() != serving || others() != notServing || health(f, "")() != serving {
		t.Errorf("commands at the owner: %v, at the follower: %v", own(), others())
	}

	if out, errs, status := f.ask("health"); status != 0 || out != "serving\n" {
		t.Errorf("health of the follower: %d %s%s", status, out, errs)
	}
	out, errs, status := f.ask("health", "--service", "instanced.v1.commands")
	if want := "instanced: the service at " + f.address + " is not serving instanced.v1.commands (NOT_SERVING)\n"; status != 1 || out != "" || errs != want {
		t.Errorf("health of commands at the follower: %d %s%s", status, out, errs)
	}
	out, _, status = f.ask("health", "--service", "instanced.v1.commands", "-o", "json")
	if status != 1 || !strings.Contains(out, `"status": "NOT_SERVING"`) {
		t.Errorf("as JSON: %d %s", status, out)
	}

	if err := etcd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{address, follower} {
		eventually(t, "it is not ready without the journal", func() bool {
			status, body := probe(a, "/readyz")
			return status == http.StatusServiceUnavailable && strings.Contains(body, "[-]journal failed ") && strings.Contains(body, ": etcd has not responded for ")
		})
		if status, body := probe(a, "/livez?verbose"); status != http.StatusOK {
			t.Errorf("/livez: %d %s", status, body)
		}
	}
	if err := etcd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{address, follower} {
		eventually(t, "it is ready again", func() bool {
			status, _ := probe(a, "/readyz")
			return status == http.StatusOK
		})
	}
	eventually(t, "one of them takes commands", func() bool { return (own() == serving) != (others() == serving) })
	// The next owner takes commands at once when this one leaves.
	first, next := s, others
	if own() != serving {
		first, next = f, own
	}
	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other one takes commands", func() bool { return next() == serving })
}

func TestHealthOfAStoppedProcessTimesOut(t *testing.T) {
	t.Parallel()
	s := runService(t)
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if out, errs, status := s.ask("health", "--timeout", "200ms"); status != 5 || out != "" || strings.Count(errs, "\n") != 1 {
		t.Errorf("%d %s%s; want 5 and one line", status, out, errs)
	}
}

// TestGRPCHealthProbe runs the probe that others use, against an owner and a follower.
func TestGRPCHealthProbe(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "grpc-health-probe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/grpc-ecosystem/grpc-health-probe")
	build.Dir = filepath.Join(repository, "tools/probe")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("grpc-health-probe cannot be built, so it is NOT tested: %v\n%s", err, out)
	}
	endpoint, _ := runEtcd(t)
	owner, follower := runServiceOn(t, endpoint), runServiceOn(t, endpoint)
	for _, check := range []struct {
		at      *service
		service string
		status  int
	}{
		{owner, "", 0},
		{owner, "instanced.v1.InstanceService", 0},
		{owner, "instanced.v1.SimulatorService", 0},
		{owner, "instanced.v1.commands", 0},
		{follower, "", 0},
		{follower, "instanced.v1.InstanceService", 0},
		{follower, "instanced.v1.commands", 4}, // unhealthy
		{owner, "nosuch", 3},                   // the call fails
	} {
		probe := exec.CommandContext(patient(t), program, "-addr", check.at.address, "-service", check.service, "-connect-timeout", "10s", "-rpc-timeout", "10s")
		out, _ := probe.CombinedOutput() // its status is what counts
		if status := probe.ProcessState.ExitCode(); status != check.status {
			t.Errorf("-service %q: %d, want %d\n%s", check.service, status, check.status, out)
		}
	}
}

// TestSettingALogLevelOutlivesAnUnchangedFile sets the level through the admin listener and
// reloads.
func TestSettingALogLevelOutlivesAnUnchangedFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "instanced.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log: {level: info}\n")
	flags, address := withMetrics(t)
	s := runService(t, append(flags, "--config", file)...)
	req, err := http.NewRequestWithContext(patient(t), http.MethodPut, "http://"+address+"/loglevel", strings.NewReader("debug"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	level := func() string { _, body := probe(address, "/loglevel"); return strings.TrimSpace(body) }
	if resp.StatusCode != http.StatusOK || level() != "debug" {
		t.Fatalf("PUT: %d, level %s", resp.StatusCode, level())
	}
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is reloaded", func() bool { return strings.Contains(s.log(), "msg=reloaded") })
	if level() != "debug" {
		t.Errorf("after a reload of the same file: %s, want debug", level())
	}
	write("log: {level: warn}\n")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the level of the file counts again", func() bool { return level() == "warn" })
	eventually(t, "the change is logged although its line is below the level", func() bool {
		return strings.Contains(s.log(), `level=INFO msg="setting changed" key=log.level was=info is=warn`)
	})
}

func TestABackendThatIsAwayIsShownButMakesNothingUnready(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, "")
	way := newRoad(t, endpoint)
	flags, address := withMetrics(t)
	s := fronting(t, way.url(), append(flags, "--reconcile-interval", "200ms")...)
	_, body := probe(address, "/readyz?verbose")
	wantLines(t, body, `\[\+\]backend ok [0-9.]+s ago`, `\[\+\]reconcile ok [0-9.]+s ago`)

	way.close()
	eventually(t, "the checks of the backend fail", func() bool {
		_, body = probe(address, "/readyz?verbose")
		return strings.Contains(body, "[-]backend failed ") && strings.Contains(body, "[-]reconcile failed ")
	})
	wantLines(t, body, `\[-\]backend failed [0-9.]+s: .* cannot be reached.* \(informational\)`, `\[\+\]journal ok .*`, `readyz check passed`)
	if status, _ := probe(address, "/readyz"); status != http.StatusOK {
		t.Errorf("/readyz: %d, want 200", status)
	}
	if status, _ := probe(address, "/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d, want 200", status)
	}
	if got := health(s, "instanced.v1.commands")(); got != serving {
		t.Errorf("health of commands: %v, want SERVING", got)
	}
	way.open()
	eventually(t, "they pass again", func() bool {
		_, body = probe(address, "/readyz?verbose")
		return strings.Contains(body, "[+]backend ok ") && strings.Contains(body, "[+]reconcile ok ")
	})
}

func TestStartupSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	endpoint, etcd := runEtcd(t)
	if err := etcd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	flags, address := withMetrics(t)
	cmd := exec.Command("instanced", append([]string{"serve", "--listen", "127.0.0.1:0", "--etcd-endpoints", endpoint}, flags...)...)
	cmd.Env = awsEnvironment()
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // may have ended
		_ = cmd.Wait()
	}()
	eventually(t, "it says that it waits for the journal", func() bool {
		status, body := probe(address, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "[-]startup failed ") && strings.Contains(body, ": waiting for the journal to open\n")
	})
	if status, _ := probe(address, "/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d", status)
	}
	if err := etcd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is ready", func() bool {
		status, _ := probe(address, "/readyz")
		return status == http.StatusOK
	})
}
