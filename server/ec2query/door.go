package ec2query

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// What the transport allows. A caller that is slower is cut off.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 2 * time.Minute // from the end of the header to that of the answer
	idleTimeout    = 2 * time.Minute
	maxReceiving   = 256      // requests whose bodies are received or in memory at once
	maxHeaderBytes = 64 << 10 // the line of the request with it, and so a GET's parameters
)

// Simulator is what the door needs of the simulator to launch instances, to change their
// attributes, and to read as from EC2. Launch and Modify return once what they did is
// recorded.
type Simulator interface {
	// Launch launches instances and returns them as launched, or as they are when its
	// client token was used for the same launch before.
	Launch(ctx context.Context, launch instance.Launch) ([]*instance.Instance, error)
	// Modify changes attributes, of all instances or of none.
	Modify(ctx context.Context, change instance.Modification) error
	// Read admits a read, which it may slow down or refuse. What it returns is how an
	// instance looks to the read, nil where it is not to be seen yet; it is nil itself
	// when all look as they are recorded.
	Read(ctx context.Context, read instance.Read) (func(*instance.Instance) *instance.Instance, error)
	// StatusDelay is how long after its launch an instance passes its status checks.
	StatusDelay() time.Duration
}

// Config is what a [Door] needs, and what may be tuned: a zero value means its default.
type Config struct {
	// Lifecycle answers. It is needed.
	Lifecycle *lifecycle.Service
	// Simulator is nil with another backend: what needs it is no action then.
	Simulator Simulator
	// Credentials are those of the callers, whose signatures are verified. Without them
	// the access key id of a request is taken for the name of a principal, unverified,
	// and the door must be on loopback.
	Credentials Credentials
	Logger      *slog.Logger
	// Deadline is that of a call; default 30 seconds.
	Deadline time.Duration
	// MaxRequests is how many calls may be under way at once; default 2,048.
	MaxRequests int
	// MaxConnections is how many connections there may be; default 5,000. A principal may
	// have as many as it leaves free. When there are more, one without a call is closed.
	MaxConnections int
}

// Door serves EC2's Query protocol over HTTP. It is safe for concurrent use.
type Door struct {
	lifecycle   *lifecycle.Service
	simulator   Simulator
	credentials atomic.Pointer[Credentials]
	log         *slog.Logger
	deadline    time.Duration
	http        *http.Server
	admission   *admission.Admission
	retries     *retries
	// receiving bounds the request bodies in memory: a request has a place from before its
	// body is read until its parameters are. The holder is a claimed access key.
	receiving *instance.Places
	// parsing bounds the requests that are parsed and checked at once, which takes only
	// processor time, but up to fifty times the memory of the body. One access key gets
	// half of them, which is one for each processor.
	parsing *instance.Places
}

// New returns a door that listens nowhere yet.
func New(cfg Config) *Door {
	if cfg.Deadline <= 0 {
		cfg.Deadline = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Door{
		lifecycle: cfg.Lifecycle,
		simulator: cfg.Simulator,
		log:       cfg.Logger,
		deadline:  cfg.Deadline,
		receiving: instance.NewPlaces(maxReceiving),
		parsing:   instance.NewPlaces(2 * runtime.GOMAXPROCS(0)),
		retries:   newRetries(maxRemembered),
		admission: admission.New(cfg.Logger, admission.Limits{
			Requests:    cmp.Or(cfg.MaxRequests, admission.DefaultMaxRequests),
			Connections: cmp.Or(cfg.MaxConnections, admission.DefaultMaxConnections),
		}),
	}
	d.http = &http.Server{
		Handler:           d,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withAccount,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	if cfg.Credentials != nil {
		d.SetCredentials(cfg.Credentials)
	}
	return d
}

// SetCredentials replaces the access keys of the callers, from the next call on. A door
// that was made without any must not be given some.
func (d *Door) SetCredentials(c Credentials) { d.credentials.Store(&c) }

// keys returns the access keys of the callers; nil when none is verified.
func (d *Door) keys() Credentials {
	if c := d.credentials.Load(); c != nil {
		return *c
	}
	return nil
}

// Serve serves on a listener until [Door.Shutdown], and returns nil then.
func (d *Door) Serve(lis net.Listener) error {
	if err := d.http.Serve(listener{lis, d.admission}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
