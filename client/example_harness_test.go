package client_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// example lends a server what it expects of a test.
type example struct {
	testing.TB
	cleanups []func()
}

// newServer returns a server with these instances, and what ends it.
func newServer(fleet *instancedv1.CreateInstancesRequest) (srv *servertest.Server, stop func()) {
	e := &example{}
	return servertest.New(e, servertest.Options{Fleet: fleet}), e.end
}

func (e *example) end() {
	for _, cleanup := range slices.Backward(e.cleanups) {
		cleanup()
	}
}

func (e *example) Helper() {}

func (e *example) Cleanup(f func()) { e.cleanups = append(e.cleanups, f) }

func (e *example) TempDir() string {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	e.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (e *example) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (e *example) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func (e *example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
