package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// TestHangupsInALoopDisturbNoRequest sends hangups while requests are made, with files in turn
// that change settings, that are wrong, and that are empty.
func TestHangupsInALoopDisturbNoRequest(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "instanced.yaml")
	write := func(text string) {
		// Renamed, so that the service never reads half of it.
		if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	s := runService(t, "--config", name)
	client := s.instances()
	ctx := patient(t)
	stop, requests := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				requests <- nil
				return
			default:
			}
			if _, err := client.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{}); err != nil {
				requests <- err
				return
			}
		}
	}()
	hangup := func(text string) {
		write(text)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		hangup([]string{
			fmt.Sprintf("drain-timeout: %dms\nlog: {level: error}\n", 2000+i),
			"log: {level: [}\n", "lisen: x\n", "limits: {max-streams: 100}\n", "",
		}[i%5])
	}
	// Hangups that arrive during a reload are one, so that the last file is always read.
	hangup("drain-timeout: 7s\n")
	eventually(t, "the last file is in effect", func() bool {
		return strings.Contains(s.log(), "is=7s source="+name+":1:16")
	})
	close(stop)
	if err := <-requests; err != nil {
		t.Errorf("a request during reloads: %v", err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if status := s.cmd.ProcessState.ExitCode(); status != 0 || !strings.Contains(s.log(), `msg="shutting down"`) || !strings.Contains(s.log(), "within=7s") {
		t.Errorf("exit status %d", status)
	}
}
