package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
)

// pushbackTrailer tells a client with automatic retries how long to wait. It is the only such
// hint that grpc-go honors.
const pushbackTrailer = "grpc-retry-pushback-ms"

// code returns the status code of a kind of error.
func code(kind instance.Kind) codes.Code {
	switch kind {
	case instance.KindInternal:
		return codes.Internal
	case instance.KindInvalid:
		return codes.InvalidArgument
	case instance.KindNotFound:
		return codes.NotFound
	case instance.KindPrecondition, instance.KindDryRun:
		return codes.FailedPrecondition
	case instance.KindPermission:
		return codes.PermissionDenied
	case instance.KindExhausted:
		return codes.ResourceExhausted
	case instance.KindConflict:
		return codes.AlreadyExists
	case instance.KindOutOfRange:
		return codes.OutOfRange
	case instance.KindUnavailable:
		return codes.Unavailable
	case instance.KindUnauthenticated:
		return codes.Unauthenticated
	}
	return codes.Internal
}

// statusError is an error as the caller sees it and as the log sees it: GRPCStatus returns
// the public status, Error the cause.
type statusError struct {
	public *status.Status
	reason string
	// success is true for an error that means success: a dry run that would have succeeded.
	success    bool
	retryAfter time.Duration
	cause      error
}

func (e *statusError) Error() string              { return e.cause.Error() }
func (e *statusError) Unwrap() error              { return e.cause }
func (e *statusError) GRPCStatus() *status.Status { return e.public }

// reads are the methods that change nothing.
var reads = map[string]bool{
	instancedv1.InstanceService_DescribeInstances_FullMethodName: true,
	instancedv1.InstanceService_WaitInstances_FullMethodName:     true,
	instancedv1.InstanceService_WatchInstances_FullMethodName:    true,
	instancedv1.InstanceService_ListEvents_FullMethodName:        true,
	instancedv1.InstanceService_GetServerInfo_FullMethodName:     true,
	instancedv1.SimulatorService_GetFaults_FullMethodName:        true,
}

// mapStatus maps the error of a handler to a status.
func mapStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	method, _ := grpc.Method(ctx)
	mapped := asStatus(err, callerOf(ctx).RequestID, reads[method])
	if e, ok := errors.AsType[*statusError](mapped); ok && e.retryAfter > 0 {
		// It fails if the caller has gone, who needs no trailer then.
		_ = grpc.SetTrailer(ctx, metadata.Pairs(pushbackTrailer, strconv.FormatInt(e.retryAfter.Milliseconds(), 10)))
	}
	return mapped
}

// asStatus returns the error as the caller sees it. An error that already is a status stays
// as it is, unless it is wrapped: then it came from something behind this service. The text
// for a call that only reads does not mention changes.
func asStatus(err error, requestID string, reads bool) error {
	if e, ok := errors.AsType[*instance.Error](err); ok {
		return fromError(e, err, requestID)
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return plain(codes.Canceled, instance.ReasonCanceled, "the caller cancelled the call", err, requestID)
	case errors.Is(err, context.DeadlineExceeded):
		text := "the deadline of the call has passed"
		if !reads {
			text += "; whether anything was changed is unknown"
		}
		return plain(codes.DeadlineExceeded, instance.ReasonDeadlineExceeded, text, err, requestID)
	}
	return plain(codes.Internal, instance.ReasonInternal, internalText(requestID), err, requestID)
}

// fromError maps an error of the layers below. Unexpected errors are redacted, and all
// that EC2 reports about the credentials of this service.
func fromError(e *instance.Error, cause error, requestID string) *statusError {
	if e.Kind == instance.KindInternal && (e.Reason == "" || e.Code != "") {
		return plain(codes.Internal, instance.ReasonInternal, internalText(requestID), cause, requestID)
	}
	return &statusError{
		public:     detailed(e, requestID),
		reason:     reason(e),
		success:    e.Kind == instance.KindDryRun,
		retryAfter: retryAfter(e),
		cause:      cause,
	}
}

func plain(c codes.Code, reason, message string, cause error, requestID string) *statusError {
	s := status.New(c, message).Proto()
	addDetail(s, errorInfo(serviceDomain, reason, map[string]string{"request_id": requestID}))
	return &statusError{public: status.FromProto(s), reason: reason, cause: cause}
}

func internalText(requestID string) string {
	return fmt.Sprintf("internal error; the log of the server has the cause under request id %s", requestID)
}

// isCanceled reports whether an error only says that a context or stream was canceled.
func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// logOutcome returns how to log the end of a call. A dry run that would have succeeded is a
// success.
func logOutcome(err error) (level slog.Level, code, reason string, failed bool) {
	e, ok := errors.AsType[*statusError](err)
	switch {
	case err == nil:
		return slog.LevelInfo, codes.OK.String(), "", false
	case ok && e.success:
		return slog.LevelInfo, codes.OK.String(), e.reason, false
	case ok && slices.Contains([]string{instance.ReasonTooManyRequests, instance.ReasonTooManyStreams, instance.ReasonTooManyConnections}, e.reason):
		// There may be floods of them, which the admission logs at a level at which repeats are held back.
		return slog.LevelDebug, e.public.Code().String(), e.reason, true
	case ok && e.reason == instance.ReasonDraining:
		return slog.LevelInfo, e.public.Code().String(), e.reason, true
	case ok:
		// A caller who leaves is not an error.
		return logLevel(e.public.Code()), e.public.Code().String(), e.reason, e.public.Code() != codes.Canceled
	}
	c := status.Code(err)
	return logLevel(c), c.String(), "", true
}

// logLevel returns the level for a status: info for mistakes of the caller, warning for a
// lack of something, error for a fault of this server.
func logLevel(c codes.Code) slog.Level {
	switch c {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}
