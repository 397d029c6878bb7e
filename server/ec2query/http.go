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

// maxBodyBytes bounds the body of a request, as it was sent and as it was before it was
// compressed. A thousand ids take 50 KB, and a thousand with fifty long tags some 220 KB.
const maxBodyBytes = 256 << 10

// call is one request on its way through the door.
type call struct {
	action string
	// version is that of the protocol which the caller speaks.
	version string
	caller  lifecycle.Caller
	// verified is whether the principal has proven who it is.
	verified bool
	args     args
	// invocation names the command for all tries that an SDK makes of it; nil for none.
	invocation *invocation
	// ids is how many instances it names, for the log.
	ids int
	// ticket is its place from when its caller is known until the response is written.
	ticket admission.Ticket
}

// ServeHTTP answers one request and writes one line about it to the log.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	c := &call{caller: lifecycle.Caller{Principal: anonymous, RequestID: newRequestID()}}
	ctx, cancel := context.WithTimeout(r.Context(), d.deadline)
	defer cancel()
	defer func() {
		if c.ticket.Admitted() {
			c.ticket.Leave()
		}
	}()

	answer, err := d.answer(ctx, w, r, c)
	status, code := http.StatusOK, "OK"
	var document []byte
	var refused refusal
	if err == nil {
		document, err = encode(c.action, c.version, answer, c.caller.RequestID)
	}
	if err != nil {
		refused = refusalOf(err, c.caller.RequestID)
		status, code = refused.status, refused.code
		document, _ = encodeError(refused, c.caller.RequestID) // two texts can always be encoded
	}
	header := w.Header()
	header.Set("Content-Type", "text/xml;charset=UTF-8")
	header.Set("Content-Length", strconv.Itoa(len(document)))
	header.Set("X-Amzn-Requestid", c.caller.RequestID)
	header.Set("Cache-Control", "no-cache, no-store")
	if refused.retryAfter > 0 && status >= http.StatusInternalServerError {
		// SDKs that know it wait for so many milliseconds.
		header.Set("X-Amz-Retry-After", strconv.FormatInt(refused.retryAfter.Milliseconds(), 10))
	}
	if status == http.StatusMethodNotAllowed {
		header.Set("Allow", "GET, POST")
	}
	w.WriteHeader(status)
	_, _ = w.Write(document) // fails for a caller that has gone
	d.report(ctx, c, code, refused, err, time.Since(begun))
}

// answer returns the answer to a request, or an error for [refusalOf].
func (d *Door) answer(ctx context.Context, w http.ResponseWriter, r *http.Request, c *call) (answer reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return nil, errInvalid("MethodNotAllowed", "The method %s is not allowed; want POST, or GET with a query.", clip(r.Method))
	}
	if d.keys() == nil {
		if err := refuseBrowsers(r); err != nil {
			return nil, err
		}
	}
	key := d.claimedKey(r)
	received, err := d.receiving.Enter(ctx, key)
	if err != nil {
		return nil, errBusy()
	}
	defer received()
	sent, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	parsed, err := d.parsing.Enter(ctx, key)
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
	if err := d.receive(r, sent, form, c, read); err != nil {
		return nil, err
	}
	c.invocation = invocationOf(r, c.caller.Principal, form)
	if c.ticket, err = d.admit(r, c.caller.Principal); err != nil {
		if e, ok := errors.AsType[*instance.Error](err); ok && e.Reason != instance.ReasonTooManyRequests {
			w.Header().Set("Connection", "close") // the connection has no future here
		}
		return nil, err
	}
	return d.act(ctx, c)
}

// receive reads the parameters of a request, and finds out who sent them. The signature is
// verified over what it has read.
func (d *Door) receive(r *http.Request, sent []byte, form string, c *call, read func()) error {
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
	return d.identify(r, query, sent, c)
}

// readBody returns the body as it was sent, which is what is signed.
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

// plain returns what is in a body.
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

// newRequestID returns a random UUID, which is what EC2's request ids look like.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// report writes the line of a call, in the words of the gRPC door.
func (d *Door) report(ctx context.Context, c *call, code string, refused refusal, err error, took time.Duration) {
	level := slog.LevelInfo
	failed := err != nil && code != instance.CodeDryRun
	if failed {
		level = refused.loudness()
	}
	if !d.log.Enabled(ctx, level) {
		return
	}
	principal := "principal"
	if !c.verified {
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
		line.AddAttrs(slog.Int("instance_ids", c.ids))
	}
	if refused.reason != "" {
		line.AddAttrs(slog.String("reason", refused.reason))
	}
	if failed {
		line.AddAttrs(slog.String("error", err.Error()))
	}
	// A log that cannot be written has nobody to be told.
	_ = d.log.Handler().Handle(ctx, line)
}
