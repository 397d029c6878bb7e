package ec2query

import (
	"cmp"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// maxBodyBytes bounds the body of a request, both as sent and uncompressed. A thousand ids
// take 50 KB, a thousand ids with fifty long tags about 220 KB.
const maxBodyBytes = 256 << 10

// call is a request that is being served.
type call struct {
	action string
	// version is the protocol version of the caller.
	version string
	caller  lifecycle.Caller
	args    args
	// invocation identifies the command across all attempts of an SDK; nil if it has no id.
	invocation *invocation
	// ids is how many instances the request names, for the log.
	ids int
	// ticket is the place of the call, from when its caller is known until the response is
	// written.
	ticket admission.Ticket
}

// ServeHTTP serves one request and logs it in one line.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	c := &call{caller: lifecycle.Caller{Principal: anonymous, RequestID: newRequestID()}}
	ctx, cancel := context.WithTimeout(r.Context(), s.deadline)
	defer cancel()
	ctx, span := s.startSpan(ctx, r)
	defer func() {
		if c.ticket.Admitted() {
			c.ticket.Leave()
		}
	}()

	answer, err := s.handle(ctx, w, r, c)
	status, code := http.StatusOK, codeOK
	var document []byte
	var refused refusal
	if err == nil {
		document, err = encode(c.action, c.version, answer, c.caller.RequestID)
	}
	if err != nil {
		refused = refusalOf(err, c.caller.RequestID)
		status, code = refused.status, refused.code
		document, _ = encodeError(refused, c.caller.RequestID) // two strings can always be encoded
	}
	header := w.Header()
	header.Set("Content-Type", "text/xml;charset=UTF-8")
	header.Set("Content-Length", strconv.Itoa(len(document)))
	header.Set("X-Amzn-Requestid", c.caller.RequestID)
	header.Set("Cache-Control", "no-cache, no-store")
	if refused.retryAfter > 0 && status >= http.StatusInternalServerError {
		// In milliseconds, for the SDKs that support it.
		header.Set("X-Amz-Retry-After", strconv.FormatInt(refused.retryAfter.Milliseconds(), 10))
	}
	if status == http.StatusMethodNotAllowed {
		header.Set("Allow", "GET, POST")
	}
	w.WriteHeader(status)
	_, _ = w.Write(document) // fails if the caller has gone
	took := time.Since(begun)
	s.ended(c, code, took)
	s.logCall(ctx, c, code, refused, err, took)
	s.endSpan(span, c, status, code, err)
}

// handle returns the response to a request, or an error for [refusalOf].
func (s *Server) handle(ctx context.Context, w http.ResponseWriter, r *http.Request, c *call) (answer reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return nil, errInvalid("MethodNotAllowed", "The method %s is not allowed; want POST, or GET with a query.", clip(r.Method))
	}
	if s.keys() == nil {
		if err := refuseBrowsers(r); err != nil {
			return nil, err
		}
	}
	key := s.claimedKey(r)
	received, err := s.receiveLimiter.Enter(ctx, key)
	if err != nil {
		return nil, errBusy()
	}
	defer received()
	sent, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	parsed, err := s.parseLimiter.Enter(ctx, key)
	if err != nil {
		return nil, errBusy()
	}
	read := func() {
		parsed()
		received()
	}
	defer read()
	form, err := plain(r, sent)
	if err != nil {
		return nil, err
	}
	if err := s.parse(r, sent, form, c, read); err != nil {
		return nil, err
	}
	c.invocation = invocationOf(r, c.caller.Principal, form)
	if c.ticket, err = s.admit(r, c.caller.Principal); err != nil {
		if e, ok := errors.AsType[*instance.Error](err); ok && e.Reason != instance.ReasonTooManyRequests {
			w.Header().Set("Connection", "close") // the next call on it would be rejected as well
		}
		return nil, err
	}
	return s.dispatch(lifecycle.WithCaller(ctx, c.caller), c)
}

// parse parses the parameters of a request and identifies the caller. The signature is
// verified over exactly what was parsed.
func (s *Server) parse(r *http.Request, sent []byte, form string, c *call, read func()) error {
	query, err := parseForm(r.URL.RawQuery)
	if err != nil {
		return err
	}
	body, err := parseForm(form)
	if err != nil {
		return err
	}
	root := &node{}
	if err := cmp.Or(root.add(query), root.add(body)); err != nil {
		return err
	}
	c.args = newArgs(root, read)
	c.action = c.args.text("Action")
	return s.identify(r, query, sent, c)
}

// readBody returns the body as it was sent, which is what the signature covers.
func readBody(w http.ResponseWriter, r *http.Request) (sent []byte, err error) {
	if r.ContentLength > maxBodyBytes {
		w.Header().Set("Connection", "close")
		return nil, errTooLarge()
	}
	sent, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, errTooLarge()
		}
		return nil, &instance.Error{
			Kind: instance.KindInvalid, Code: "RequestTimeout", Cause: err,
			Message: "The body of the request did not arrive whole, or not in time.",
		}
	}
	return sent, nil
}

// plain returns the uncompressed body.
func plain(r *http.Request, sent []byte) (form string, err error) {
	switch encoding := strings.ToLower(strings.Join(r.Header["Content-Encoding"], ", ")); encoding {
	case "", "identity":
		return string(sent), nil
	case "gzip":
		return inflate(sent)
	default:
		return "", errInvalid("InvalidRequest", "The body of the request has the encoding %s; want gzip, or none.", clip(encoding))
	}
}

func inflate(compressed []byte) (string, error) {
	reader, err := gzip.NewReader(strings.NewReader(string(compressed)))
	if err != nil {
		return "", errInvalid("InvalidRequest", "The body of the request is said to be compressed by gzip, and is not.")
	}
	plain, err := io.ReadAll(io.LimitReader(reader, maxBodyBytes+1))
	switch {
	case err != nil:
		return "", errInvalid("InvalidRequest", "The body of the request is said to be compressed by gzip, and is damaged.")
	case len(plain) > maxBodyBytes:
		return "", errTooLarge()
	}
	return string(plain), nil
}

func errTooLarge() error {
	return errInvalid("RequestEntityTooLarge", "The body of the request is too large; at most %d bytes are allowed.", maxBodyBytes)
}

// newRequestID returns a random UUID, the form of EC2's request ids.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// logCall logs a call, with the attributes that the gRPC endpoint uses.
func (s *Server) logCall(ctx context.Context, c *call, code string, refused refusal, err error, took time.Duration) {
	level := slog.LevelInfo
	failed := err != nil && code != instance.CodeDryRun
	if failed {
		level = refused.logLevel()
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	principal := "principal"
	if !c.caller.Authenticated {
		principal = "principal_unverified"
	}
	line := slog.NewRecord(time.Now(), level, "call", 0)
	line.AddAttrs(
		slog.String("service", "ec2"),
		slog.String("method", clip(c.action)),
		slog.String("code", code),
		slog.String(principal, c.caller.Principal),
		slog.String("request_id", c.caller.RequestID),
		slog.Duration("took", took),
	)
	if c.ids > 0 {
		line.AddAttrs(slog.Int("instances", c.ids))
	}
	if refused.reason != "" {
		line.AddAttrs(slog.String("reason", refused.reason))
	}
	if failed {
		line.AddAttrs(slog.String("error", err.Error()))
	}
	// There is nowhere to report a failure to log.
	_ = s.log.Handler().Handle(ctx, line)
}
