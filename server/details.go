package server

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/internal/instance"
)

// The domains of google.rpc.ErrorInfo.
const (
	ec2Domain     = "ec2.amazonaws.com"
	serviceDomain = "instanced"
)

// Errors travel in headers, which proxies and clients limit to 8 KiB in total, so a status
// and its details stay below 4 KiB.
const (
	maxStatusBytes   = 4096
	maxMessageBytes  = 1024
	maxMetadataBytes = 640
	maxViolations    = 20
	maxViolationText = 256
)

// detailed returns the status of an error with its details.
func detailed(e *instance.Error, requestID string) *status.Status {
	s := status.New(code(e.Kind), clip(e.Message, maxMessageBytes)).Proto()
	addDetail(s, errorInfo(domain(e), reason(e), errorMetadata(e, requestID)))
	if wait := retryAfter(e); wait > 0 {
		addDetail(s, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	if len(e.Violations) > 0 {
		addDetail(s, badRequest(e.Violations, maxStatusBytes-proto.Size(s)))
	}
	return status.FromProto(s)
}

func domain(e *instance.Error) string {
	if e.Code != "" {
		return ec2Domain
	}
	return serviceDomain
}

// reason returns the reason of an error in UPPER_SNAKE_CASE.
func reason(e *instance.Error) string {
	switch {
	case e.Code != "":
		return upperSnake(e.Code)
	case e.Reason != "":
		return e.Reason
	case e.Kind == instance.KindInvalid:
		return instance.ReasonInvalidRequest
	}
	return "UNSPECIFIED"
}

// retryAfter returns after what time a retry may succeed; zero if a retry makes no sense.
// What is unavailable may be back soon. If the outcome is unknown, however, the caller has to
// look first.
func retryAfter(e *instance.Error) time.Duration {
	if e.Kind == instance.KindUnavailable && e.RetryAfter == 0 && !e.OutcomeUnknown {
		return time.Second
	}
	return e.RetryAfter
}

func errorMetadata(e *instance.Error, requestID string) map[string]string {
	m := make(map[string]string, len(e.Metadata)+4)
	for key, value := range e.Metadata {
		putClipped(m, key, value)
	}
	m["request_id"] = requestID
	if e.Code != "" {
		m["ec2_error_code"] = e.Code
	}
	switch len(e.InstanceIDs) {
	case 0:
	case 1:
		m["instance_id"] = string(e.InstanceIDs[0])
	default:
		m["instance_count"] = strconv.Itoa(len(e.InstanceIDs))
		putClipped(m, "instance_ids", strings.Join(instance.Strings(e.InstanceIDs), ","))
	}
	if len(e.Violations) > 0 {
		m["violation_count"] = strconv.Itoa(len(e.Violations))
	}
	if e.OutcomeUnknown {
		m["outcome"] = "unknown"
	}
	return m
}

// putClipped puts a value that may be a long list. A list that does not fit is cut after an
// element, and the number of omitted elements is put under the key with "_omitted".
func putClipped(m map[string]string, key, value string) {
	value = strings.ToValidUTF8(value, "\uFFFD")
	if len(value) <= maxMetadataBytes {
		m[key] = value
		return
	}
	end := strings.LastIndexByte(value[:maxMetadataBytes+1], ',')
	if end < 0 {
		m[key] = clip(value, maxMetadataBytes)
		return
	}
	m[key] = value[:end]
	m[key+"_omitted"] = strconv.Itoa(strings.Count(value[end:], ","))
}

// badRequest lists violations, as many as fit into room.
func badRequest(violations []instance.Violation, room int) *errdetails.BadRequest {
	bad := &errdetails.BadRequest{}
	for _, v := range violations[:min(len(violations), maxViolations)] {
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field:       clip(v.Field, maxViolationText),
			Description: clip(v.Description, maxViolationText),
			Reason:      upperSnake(v.Reason),
		})
	}
	// The overhead of the message: type URL, tags and lengths.
	const envelope = 80
	for len(bad.FieldViolations) > 1 && proto.Size(bad) > room-envelope {
		bad.FieldViolations = bad.FieldViolations[:len(bad.FieldViolations)-1]
	}
	return bad
}

func errorInfo(domain, reason string, metadata map[string]string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: metadata}
}

// addDetail adds a detail to a status. A detail that cannot be encoded, because a string in
// it is not UTF-8, is omitted.
func addDetail(s *spb.Status, detail proto.Message) {
	if packed, err := anypb.New(detail); err == nil {
		s.Details = append(s.Details, packed)
	}
}

// upperSnake returns an EC2 code, such as InvalidInstanceID.NotFound, in
// UPPER_SNAKE_CASE: INVALID_INSTANCE_ID_NOT_FOUND. A code already in that case is unchanged.
func upperSnake(s string) string {
	var b strings.Builder
	runes := []rune(s)
	for i, r := range runes {
		if r == '.' {
			r = '_'
		}
		if i > 0 && unicode.IsUpper(r) {
			before, beforeLower := runes[i-1], i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if unicode.IsLower(before) || unicode.IsDigit(before) || unicode.IsUpper(before) && beforeLower {
				b.WriteByte('_')
			}
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}

// clip shortens a string to maxBytes and makes it valid UTF-8.
func clip(s string, maxBytes int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxBytes {
		return s
	}
	const ellipsis = "…"
	end := maxBytes - len(ellipsis)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}
