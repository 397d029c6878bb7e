package journal

import (
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config says where the log is and how much of it to keep. A zero field means its default,
// except DataDir and Endpoints, one of which is required.
type Config struct {
	// DataDir is the directory of the embedded etcd. It is created if it does not exist, belongs
	// to one process at a time, and is not used with Endpoints.
	DataDir string
	// Endpoints are the addresses of an external etcd cluster, such as "http://127.0.0.1:2379",
	// or "https://etcd.example.com:2379" with TLS.
	// Several processes may share one log there.
	Endpoints []string
	// Security is how to reach Endpoints by TLS, and with a user.
	Security EtcdSecurity
	// Prefix is the prefix of all keys; "/instanced" by default.
	Prefix string
	// Logger also receives etcd's log: its warnings and errors as they are, information as debug.
	// By default nothing is logged.
	Logger *slog.Logger
	// Retention is how long to keep history, 24 hours by default.
	Retention time.Duration
	// MaxBytes is how much history to keep, in bytes; 1 GiB by default, at least 1 MiB. At most
	// one batch is kept for each KiB of it. The database of the embedded etcd may take twice that
	// on disk, and always 64 MiB; history is trimmed when it would take more. Only the current
	// state of the instances can make it larger.
	MaxBytes int64
	// MinFreeDisk is the free disk space, in bytes, below which [Term.Writable] says
	// that the journal is full; 512 MiB by default. A value below 128 MiB, negative ones included,
	// means 128 MiB. Below that nothing is written, not even updates that are in flight, until
	// there is space again: etcd ends the process when the disk is full. For the same reason Open fails with less than 160 MiB, or 304 MiB when the journal is
	// new. Only for the embedded etcd.
	MinFreeDisk int64
	// MaxClientTokens is the maximum number of client tokens, 200,000 by default. Together they take
	// at most a quarter of the database's budget; a principal may use no more than it leaves free.
	MaxClientTokens int
	// TokenLifetime is how long to keep a client token, 24 hours by default.
	TokenLifetime time.Duration
	// RingBytes bounds the memory for the end of the log that readers share, encodings included,
	// in bytes; 16 MiB by default.
	RingBytes int64
	// Metrics is where the journal registers its metrics, once for each registerer; nil for
	// nowhere.
	Metrics prometheus.Registerer
	// Version is the version of this program, recorded with the journal's format.
	Version string
	// Address is where this process can be reached. Other processes see it while this one is the
	// owner.
	Address string
	// OwnerTTL is how long an owner that has fallen silent remains the owner, at least
	// 2 seconds, 10 by default. Only for an external etcd.
	OwnerTTL time.Duration

	// mustExist makes Open fail rather than create a log.
	mustExist bool
}

// MinMaxBytes is the minimum of [Config.MaxBytes]: the size of the largest batch.
const MinMaxBytes = 1 << 20

// minBytesPerBatch is for how many bytes of [Config.MaxBytes] one batch may be kept: however small
// batches are, etcd holds their keys in memory.
const minBytesPerBatch = 1 << 10

func (c Config) withDefaults() Config {
	c.Prefix = or(strings.TrimRight(c.Prefix, "/"), "/instanced")
	c.Retention = or(c.Retention, 24*time.Hour)
	c.MaxBytes = or(c.MaxBytes, 1<<30)
	c.MinFreeDisk = or(c.MinFreeDisk, 512<<20)
	c.MaxClientTokens = or(c.MaxClientTokens, 200_000)
	c.TokenLifetime = or(c.TokenLifetime, 24*time.Hour)
	c.RingBytes = or(c.RingBytes, 16<<20)
	c.OwnerTTL = max(or(c.OwnerTTL, 10*time.Second), 2*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// Config returns how the journal was opened, with the defaults filled in.
func (j *Journal) Config() Config { return j.config }
