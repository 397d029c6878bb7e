package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

const stopped = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED

// TestMain makes the test binary the program itself when a test has begun it as that.
func TestMain(m *testing.M) {
	if os.Getenv("RUNNINGHOURS") != "" {
		main()
	}
	os.Exit(m.Run())
}

// begin runs the program in a process of its own.
func begin(t *testing.T, stderr io.Writer, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "RUNNINGHOURS=1")
	cmd.Stdout, cmd.Stderr = t.Output(), stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// kill kills the program without a warning.
func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// patient is the context of a test that waits for conditions.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// serve lets other processes reach the server at a path of the file system.
func serve(t *testing.T, srv *servertest.Server, socket string) {
	t.Helper()
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
}

// fleet returns so many stopped instances and their ids, which begin with a prefix of four
// hex digits.
func fleet(prefix string, count int) (*instancedv1.CreateInstancesRequest, []string) {
	req := &instancedv1.CreateInstancesRequest{}
	var ids []string
	for i := range count {
		ids = append(ids, fmt.Sprintf("i-%s%013x", prefix, i))
		req.Instances = append(req.Instances, &instancedv1.InstanceSpec{InstanceId: ids[i]})
	}
	return req, ids
}

// open opens the database beside the program.
func open(t *testing.T, path string) *table {
	t.Helper()
	table, err := openTable(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.close() })
	return table
}

// until waits until the table is as it should be.
func until(t *testing.T, table *table, enough func(rows []row, cursor string) bool) []row {
	t.Helper()
	ctx := patient(t)
	for {
		cursor, err := table.cursor(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if cursor != "" {
			rows, _, err := table.rows(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if enough(rows, cursor) {
				return rows
			}
		}
		select {
		case <-ctx.Done():
			t.Fatal("the table does not get there")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// changes starts and stops instances until the test has had enough.
func changes(ctx context.Context, t *testing.T, c *client.Client, ids []string, enough <-chan struct{}) {
	for n := 0; ; n++ {
		chosen := []string{ids[n%len(ids)]}
		if _, err := c.StartAndWait(ctx, &instancedv1.StartInstancesRequest{InstanceIds: chosen}); err != nil {
			t.Error(err)
			return
		}
		select {
		case <-enough:
			return // the last one goes on running
		default:
		}
		stopping, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{InstanceIds: chosen})
		if err == nil {
			_, err = c.Wait(ctx, &instancedv1.WaitInstancesRequest{
				InstanceIds: chosen, States: []instancedv1.InstanceStateName{stopped}, AfterCursor: stopping.GetCursor(),
			})
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// want returns the rows that the history makes, and how many changes it has.
func want(t *testing.T, c *client.Client, ids []string) (rows map[string]row, changes int) {
	t.Helper()
	rows = make(map[string]row)
	for page, err := range c.Events(patient(t), &instancedv1.ListEventsRequest{InstanceIds: ids, PageSize: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.GetEvents() {
			changes++
			i, at := e.GetInstance(), e.GetOccurredAt().AsTime()
			r := rows[i.GetInstanceId()]
			r.id, r.state = i.GetInstanceId(), stateName(i)
			switch {
			case i.GetState().GetName() == running:
				r.since = new(at.UnixNano())
			case e.GetPreviousState().GetName() == running:
				r.before, r.since = r.before+at.Sub(time.Unix(0, *r.since)), nil
			}
			rows[i.GetInstanceId()] = r
		}
	}
	return rows, changes
}

func equal(a, b row) bool {
	return a.id == b.id && a.state == b.state && a.before == b.before &&
		(a.since == nil) == (b.since == nil) && (a.since == nil || *a.since == *b.since)
}

func TestKilledAtAnyPointTheTableIsWhatTheHistorySays(t *testing.T) {
	const kills = 30
	instances, ids := fleet("1111", 6)
	srv := servertest.New(t, servertest.Options{Fleet: instances, Speed: 300})
	socket := filepath.Join(t.TempDir(), "socket")
	serve(t, srv, socket)
	c := client.New(srv.Conn(), client.Options{})
	path := filepath.Join(t.TempDir(), "hours.db")
	args := []string{"--server", "unix:" + socket, "--db", path}

	// Counting begins before anything has run.
	table := open(t, path)
	program := begin(t, t.Output(), args...)
	until(t, table, func([]row, string) bool { return true })
	enough := make(chan struct{})
	var load sync.WaitGroup
	for i := range 3 {
		load.Go(func() { changes(patient(t), t, c, ids[2*i:2*i+2], enough) })
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range kills {
		before, err := table.cursor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// So it gets somewhere each time, and is killed in the midst of what comes next.
		until(t, table, func(_ []row, cursor string) bool { return cursor != before })
		time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
		kill(program)
		program = begin(t, t.Output(), args...)
	}
	close(enough)
	load.Wait()

	expected, events := want(t, c, ids)
	rows := until(t, table, func(rows []row, _ string) bool {
		for _, r := range rows {
			if !equal(r, expected[r.id]) {
				return false
			}
		}
		return true
	})
	kill(program)
	if len(rows) != len(ids) {
		t.Errorf("%d rows for %d instances", len(rows), len(ids))
	}
	described := make(map[string]string)
	for page, err := range c.Describe(patient(t), &instancedv1.DescribeInstancesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.GetInstances() {
			described[i.GetInstanceId()] = stateName(i)
		}
	}
	for _, r := range rows {
		if r.state != described[r.id] {
			t.Errorf("%s is %s in the table, and %s", r.id, r.state, described[r.id])
		}
	}
	t.Logf("killed %d times in %d changes", kills, events)
}

func TestANewSnapshotReplacesTheTableInOneTransaction(t *testing.T) {
	// A snapshot of so many comes in several messages.
	const count = 1500
	socket, path := filepath.Join(t.TempDir(), "socket"), filepath.Join(t.TempDir(), "hours.db")
	args := []string{"--server", "unix:" + socket, "--db", path}
	old, _ := fleet("1111", count)
	first := servertest.New(t, servertest.Options{Fleet: old})
	serve(t, first, socket)
	table := open(t, path)
	program := begin(t, t.Output(), args...)
	all := func(prefix string) func([]row, string) bool {
		return func(rows []row, _ string) bool {
			n := 0
			for _, r := range rows {
				if strings.HasPrefix(r.id, "i-"+prefix) {
					n++
				}
			}
			if len(rows) != count || n != 0 && n != count {
				t.Fatalf("%d rows, of which %d are of %s", len(rows), n, prefix)
			}
			return n == count
		}
	}
	until(t, table, all("1111"))
	kill(program)
	first.Close()

	// Another log: the cursor in the database is of no use for it.
	instances, _ := fleet("2222", count)
	serve(t, servertest.New(t, servertest.Options{Fleet: instances}), socket)
	random, kills := rand.New(rand.NewPCG(3, 4)), 0
	for replaced := false; !replaced; kills++ {
		said, w := io.Pipe()
		program = begin(t, w, args...)
		// It says so when the first message of the snapshot is there.
		if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(2000*(kills+1))) * time.Microsecond)
		_ = said.Close()
		kill(program)
		until(t, table, func(rows []row, cursor string) bool {
			replaced = all("2222")(rows, cursor)
			return true
		})
	}
	t.Logf("killed %d times", kills)
	program = begin(t, t.Output(), args...)
	until(t, table, all("2222"))
	kill(program)
}

func TestTheReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hours.db")
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), []string{"--db", path, "--report"}, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), "nothing was counted yet") {
		t.Errorf("status %d, %q", status, &stderr)
	}
	instances, ids := fleet("1111", 2)
	srv := servertest.New(t, servertest.Options{Fleet: instances})
	socket := filepath.Join(t.TempDir(), "socket")
	serve(t, srv, socket)

	ctx, cancel := context.WithCancel(patient(t))
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{"--db", path, "--server", "unix:" + socket}, &bytes.Buffer{}, t.Output())
	}()
	table := open(t, path)
	until(t, table, func(rows []row, _ string) bool { return len(rows) == 2 })
	if _, err := client.New(srv.Conn(), client.Options{}).StartAndWait(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids[:1]}); err != nil {
		t.Fatal(err)
	}
	until(t, table, func(rows []row, _ string) bool { return rows[0].state == "running" })
	cancel()
	if status := <-ended; status != 0 {
		t.Errorf("told to end, it ended with status %d", status)
	}

	stdout.Reset()
	if status := run(t.Context(), []string{"--db", path, "--report"}, &stdout, &stderr); status != 0 {
		t.Errorf("status %d", status)
	}
	lines := strings.Split(stdout.String(), "\n")
	if len(lines) != 5 || lines[2] != ids[0]+"  running  0.00" || lines[3] != ids[1]+"  stopped  0.00" {
		t.Errorf("it prints\n%s", &stdout)
	}
}

func TestAWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"--db"}, {"--db", "x", "y"}, {"--interval", "5s"}} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), args, &stdout, &stderr); status != 2 || stderr.Len() == 0 {
			t.Errorf("%q: status %d, %q", args, status, &stderr)
		}
	}
}
