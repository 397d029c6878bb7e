package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/server/admin"
)

const (
	// minMemory is the smallest memory limit with which the service starts.
	minMemory = 64 << 20
	// mappedByJournal is how much address space etcd maps for its database; hardly any of it is
	// memory. addressSpace is what the process needs beside it.
	mappedByJournal = 10 << 30
	addressSpace    = 2 << 30

	// reservedFiles are the open files beside the connections of callers: the journal's, the
	// listeners', and those that are read for a moment. reservedFilesEC2 are the connections to AWS.
	reservedFiles    = 48
	reservedFilesEC2 = 64
	// minAdminConnections is the smallest limit of connections of the admin listener; they
	// take no more than one file in adminShare, and are reserved too.
	minAdminConnections = 8
	adminShare          = 16
	// minConnections is the smallest limit of connections with which the service starts.
	minConnections = 8

	// indexBytesPerKiB and clientTokenBytes are what the journal takes in memory for each KiB of
	// --journal-max-bytes, and for each client token, at most.
	indexBytesPerKiB = 180
	clientTokenBytes = 420
)

// processLimits are the limits that the process was started with.
type processLimits struct {
	// memory is what Go's memory is limited to, in bytes; 0 if it is not. memoryFrom says by what.
	memory     int64
	memoryFrom string
	// cgroup is the limit of the cgroup, if that is what memory is derived from.
	cgroup int64
	// openFiles is how many files may be open at once.
	openFiles uint64
	// addressSpace is how much of it may be mapped.
	addressSpace uint64
	// unreadable is why the limit of the cgroup is unknown; nil if it is not.
	unreadable error
}

// The sources of a memory limit.
const (
	memoryFromVariable = "GOMEMLIMIT"
	memoryFromCgroup   = "cgroup"
	memoryUnlimited    = "none"
)

// adoptLimits finds the limits of this process, and limits Go's memory to what a cgroup allows
// unless GOMEMLIMIT is set.
func adoptLimits(cgroup memlimit.Provider) processLimits {
	limits := processLimits{memoryFrom: memoryUnlimited, openFiles: math.MaxUint64, addressSpace: math.MaxUint64}
	if os.Getenv("GOMEMLIMIT") != "" {
		limits.memoryFrom = memoryFromVariable
	} else if bytes, err := cgroup(); err == nil {
		// The rest is for what Go does not count: the pages of etcd's database, and the kernel's
		// buffers of sockets.
		limits.memoryFrom, limits.cgroup = memoryFromCgroup, int64(min(bytes, math.MaxInt64))
		debug.SetMemoryLimit(limits.cgroup / 10 * 9)
	} else if !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		limits.unreadable = err
	}
	if bytes := debug.SetMemoryLimit(-1); bytes < math.MaxInt64 {
		limits.memory = bytes
	}
	var r unix.Rlimit
	// Go has raised the soft limit to the hard one, and gives processes that it starts the old one.
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		limits.openFiles = r.Cur
	}
	if unix.Getrlimit(unix.RLIMIT_AS, &r) == nil {
		limits.addressSpace = r.Cur
	}
	return limits
}

// fit lowers settings to what the limits allow and says so, or returns why the service cannot
// run. Sizes that were asked for are kept.
func (l processLimits) fit(cfg *serveConfig, effective *settings, log *slog.Logger) error {
	if l.unreadable != nil {
		log.Warn("the memory limit of the cgroup cannot be read; set GOMEMLIMIT if there is one", "error", l.unreadable)
	}
	if err := l.checkAddressSpace(*cfg); err != nil {
		return err
	}
	if err := l.fitMemory(cfg, effective, log); err != nil {
		return err
	}
	if err := l.fitOpenFiles(cfg, log); err != nil {
		return err
	}
	memory := []any{"memory_from", l.memoryFrom}
	if l.memory > 0 {
		memory = append(memory, "memory_bytes", l.memory)
	}
	if l.cgroup > 0 {
		memory = append(memory, "cgroup_bytes", l.cgroup)
	}
	log.Info("limits of the process", append(memory,
		"processors", runtime.GOMAXPROCS(0), "open_files", l.openFiles, "max_connections", cfg.maxConnections,
		"journal_max_bytes", cfg.journalMaxBytes, "max_client_tokens", cfg.maxClientTokens)...)
	return nil
}

// checkAddressSpace returns an error if ulimit -v leaves less than the process maps.
func (l processLimits) checkAddressSpace(cfg serveConfig) error {
	need, what := uint64(addressSpace), "the service needs %s"
	if len(cfg.etcdEndpoints) == 0 {
		need, what = need+mappedByJournal, "the embedded journal needs %s, hardly any of which is memory"
	}
	if l.addressSpace >= need {
		return nil
	}
	return fmt.Errorf("the address space is limited to %s (ulimit -v), and "+what+"; run ulimit -v unlimited, and limit memory by GOMEMLIMIT or a cgroup",
		sizeText(l.addressSpace), sizeText(need))
}

// fitMemory lowers the defaults of what grows with use so that it takes half of the memory at
// most.
func (l processLimits) fitMemory(cfg *serveConfig, effective *settings, log *slog.Logger) error {
	if l.memory == 0 {
		return nil
	}
	if limit := max(l.memory, l.cgroup); limit < minMemory {
		return fmt.Errorf("memory is limited to %s (%s), and the service needs %s", sizeText(uint64(limit)), l.memoryFrom, sizeText(minMemory))
	}
	need := func() int64 {
		bytes := int64(cfg.maxClientTokens) * clientTokenBytes
		if len(cfg.etcdEndpoints) == 0 {
			bytes += cfg.journalMaxBytes >> 10 * indexBytesPerKiB
		}
		return bytes
	}
	room := l.memory / 2
	share := float64(room) / float64(need())
	if share < 1 && effective.isDefault("journal-max-bytes") {
		cfg.journalMaxBytes = max(int64(share*float64(cfg.journalMaxBytes)), journal.MinMaxBytes)
	}
	if share < 1 && effective.isDefault("max-client-tokens") {
		cfg.maxClientTokens = max(int(share*float64(cfg.maxClientTokens)), 1)
	}
	if need() > room {
		log.Warn("a full journal may take more memory than there is; lower --journal-max-bytes or --max-client-tokens, or allow more memory",
			"journal_may_take_bytes", need(), "memory_bytes", l.memory, "journal_max_bytes", cfg.journalMaxBytes, "max_client_tokens", cfg.maxClientTokens)
	}
	return nil
}

// fitOpenFiles lowers the limit of connections to the number of files that may be open.
func (l processLimits) fitOpenFiles(cfg *serveConfig, log *slog.Logger) error {
	endpoints, reserved := uint64(1), uint64(reservedFiles)
	if cfg.ec2Listen != "" {
		endpoints++
	}
	if cfg.backend == backendEC2 {
		reserved += reservedFilesEC2
	}
	if cfg.adminListen != "" {
		cfg.maxAdminConnections = int(min(max(l.openFiles/adminShare, minAdminConnections), admin.DefaultMaxConnections))
		reserved += uint64(cfg.maxAdminConnections)
	}
	if need := reserved + endpoints*minConnections; l.openFiles < need {
		return fmt.Errorf("only %d files may be open at once (ulimit -n), and the service needs %d; raise the limit, such as by ulimit -n %d",
			l.openFiles, need, reserved+endpoints*uint64(cfg.maxConnections))
	}
	room := (l.openFiles - reserved) / endpoints
	if uint64(cfg.maxConnections) <= room {
		return nil
	}
	log.Warn("too few files may be open at once for --max-connections, which is lowered; raise ulimit -n, or LimitNOFILE= of a systemd unit",
		"open_files", l.openFiles, "needed_open_files", reserved+endpoints*uint64(cfg.maxConnections), "was", cfg.maxConnections, "is", room)
	cfg.maxConnections = int(room)
	return nil
}

// sizeText returns a number of bytes as people write it.
func sizeText(bytes uint64) string {
	for i, unit := range []string{"GiB", "MiB", "KiB"} {
		if size := uint64(1) << (30 - 10*i); bytes >= size {
			return strconv.FormatFloat(math.Floor(float64(bytes)/float64(size)*10)/10, 'f', -1, 64) + unit
		}
	}
	return strconv.FormatUint(bytes, 10) + " bytes"
}
