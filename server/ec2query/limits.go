package ec2query

import (
	"net/http"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// claimedKey returns the access key that a request names, or "" if no caller has that key.
// It is not verified yet: it only divides the places of the requests that are received and
// parsed, so that callers without a key share one part of them, whatever they claim.
func (s *Server) claimedKey(r *http.Request) string {
	credential := r.URL.Query().Get("X-Amz-Credential")
	if _, signed, ok := strings.Cut(r.Header.Get("Authorization"), "Credential="); ok {
		credential, _, _ = strings.Cut(signed, ",")
	}
	var claimed signature
	claimed.scope(credential)
	if keys := s.keys(); keys != nil {
		if _, known := keys[claimed.accessKeyID]; !known {
			return ""
		}
	}
	return claimed.accessKeyID
}

// errBusy is the error for a request that found no place before its deadline.
func errBusy() error {
	return &instance.Error{
		Kind: instance.KindExhausted, Code: instance.CodeRequestLimitExceeded, Reason: instance.ReasonTooManyRequests, RetryAfter: time.Second,
		Message: "Request limit exceeded. Too many requests are being received or parsed; nothing was changed by this call.",
	}
}
