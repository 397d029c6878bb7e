package admin

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof" // registers with http.DefaultServeMux too, which nothing here serves
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/reflection"
)

const (
	// maxProfileTime is the longest profile or trace.
	maxProfileTime = 10 * time.Minute
	// Profiles beyond maxProfiles at a time are answered with 503.
	maxProfiles = 4
	// maxLevelBytes limits the body of PUT /loglevel.
	maxLevelBytes = 64
)

// profiles returns the handlers of /debug/pprof/.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	places := make(chan struct{}, maxProfiles)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var took time.Duration
		switch r.URL.Path {
		case "/debug/pprof/profile":
			took = 30 * time.Second // the default
		case "/debug/pprof/trace":
			took = time.Second
		}
		if text := r.URL.Query().Get("seconds"); text != "" {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds >= 0 && seconds <= maxProfileTime.Seconds()) {
				writeText(w, http.StatusBadRequest, "seconds must be a number of at most "+strconv.Itoa(int(maxProfileTime.Seconds()))+"\n")
				return
			}
			took = time.Duration(seconds * float64(time.Second))
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			writeText(w, http.StatusServiceUnavailable, "too many profiles are being taken; try again later\n")
			return
		}
		extendWriteDeadline(w, took)
		mux.ServeHTTP(w, r)
	})
}

// newDebugServer returns the gRPC server of the admin listener: channelz, and reflection for
// tools.
func newDebugServer() *grpc.Server {
	s := grpc.NewServer()
	channelz.RegisterChannelzServiceToServer(s)
	reflection.Register(s)
	return s
}

// isGRPC reports whether a request is a gRPC call.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// logLevel serves /loglevel.
type logLevel struct {
	level *slog.LevelVar
	parse func(text string) (slog.Level, error)
	log   *slog.Logger
}

func (l logLevel) get(w http.ResponseWriter, _ *http.Request) {
	writeText(w, http.StatusOK, levelName(l.level.Level())+"\n")
}

// put sets the level. A web page cannot send a PUT to another site without asking first.
func (l logLevel) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLevelBytes))
	if _, tooLong := errors.AsType[*http.MaxBytesError](err); err != nil && !tooLong {
		writeText(w, http.StatusBadRequest, "the body did not arrive in time\n")
		return
	}
	level, err := l.parse(strings.TrimSpace(string(body)))
	if err != nil {
		writeText(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	was := l.level.Level()
	l.level.Set(level)
	line := slog.NewRecord(time.Now(), slog.LevelInfo, "the log level was changed through the admin listener", 0)
	line.Add("was", levelName(was), "is", levelName(level))
	// Straight to the handler, so that it is written at any level.
	_ = l.log.Handler().Handle(r.Context(), line) // there is nowhere to report a failure to log
	l.get(w, r)
}

// levelName returns the name of a level as in the settings.
func levelName(level slog.Level) string { return strings.ToLower(level.String()) }
