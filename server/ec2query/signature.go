package ec2query

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fixed parts of Signature Version 4.
const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	amzTime    = "20060102T150405Z"
	amzDay     = "20060102"
	amzPrefix  = "X-Amz-"
)

const (
	// maxSkew is how much the clock of a caller may differ.
	maxSkew = 15 * time.Minute
	// maxExpiry is how long a presigned request may be valid.
	maxExpiry = 7 * 24 * time.Hour
)

// signature is the signature of a request and how it was made.
type signature struct {
	accessKeyID string
	region      string
	service     string
	day         string
	headers     []string
	hex         string
	// date is at as it was written.
	date string
	at   time.Time
	// presigned requests carry all of it in the query, and are valid for expires.
	presigned bool
	expires   time.Duration
}

var (
	errNoToken   = errInvalid("MissingAuthenticationToken", "Request is missing Authentication Token")
	errUnclear   = errInvalid("IncompleteSignature", "The request signature does not conform to AWS standards.")
	errTwoSigned = errInvalid("IncompleteSignature", "The request is signed more than once: want one Authorization header, or a signature in the query.")
)

// readSignature returns the signature of a request; nil if it has none or, with an error, more
// than one. For a malformed signature it returns an error and what could be read.
func readSignature(header http.Header, query form) (*signature, error) {
	authorization := header["Authorization"]
	presigned := query.has("X-Amz-Signature") || query.has("X-Amz-Credential")
	switch {
	case len(authorization) > 1, presigned && len(authorization) > 0 && authorization[0] != "":
		return nil, errTwoSigned
	case presigned:
		return presignature(query)
	case len(authorization) == 0 || authorization[0] == "":
		return nil, nil
	}
	method, rest, _ := strings.Cut(authorization[0], " ")
	s, wellFormed := &signature{}, method == algorithm
	given := make(map[string]bool)
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		wellFormed = wellFormed && !given[name]
		given[name] = true
		switch name {
		case "Credential":
			wellFormed = s.scope(value) && wellFormed
		case "SignedHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.hex = value
		default:
			wellFormed = false
		}
	}
	if dates := header["X-Amz-Date"]; len(dates) == 1 {
		s.date = dates[0]
	}
	return s, s.check(wellFormed)
}

func presignature(query form) (*signature, error) {
	s := &signature{
		presigned: true,
		headers:   strings.Split(query.get("X-Amz-SignedHeaders"), ";"),
		hex:       query.get("X-Amz-Signature"),
		date:      query.get("X-Amz-Date"),
	}
	scoped := s.scope(query.get("X-Amz-Credential"))
	seconds, err := strconv.Atoi(query.get("X-Amz-Expires"))
	valid := err == nil && seconds >= 0 && seconds <= int(maxExpiry/time.Second)
	s.expires = time.Duration(seconds) * time.Second
	return s, s.check(scoped && valid && query.get("X-Amz-Algorithm") == algorithm)
}

// scope parses a credential scope. An access key id may contain slashes; in an incomplete
// scope it ends at the first one.
func (s *signature) scope(text string) bool {
	parts := strings.Split(text, "/")
	n := len(parts)
	if n < 5 || parts[n-1] != terminator {
		s.accessKeyID = parts[0]
		return false
	}
	s.accessKeyID = strings.Join(parts[:n-4], "/")
	s.day, s.region, s.service = parts[n-4], parts[n-3], parts[n-2]
	return s.accessKeyID != ""
}

// check rejects signatures that are malformed, incomplete or inconsistent.
func (s *signature) check(wellFormed bool) error {
	var err error
	s.at, err = time.Parse(amzTime, s.date)
	if !wellFormed || err != nil || s.at.Format(amzTime) != s.date || s.day != s.at.Format(amzDay) ||
		s.accessKeyID == "" || s.hex == "" || !slices.Contains(s.headers, "host") {
		return errUnclear
	}
	return nil
}

// verify signs the request with the secret and compares the signatures. It signs the query as
// it was parsed.
func (s *signature) verify(r *http.Request, query form, body []byte, secret string, now time.Time) error {
	from, to := s.at.Add(-maxSkew), s.at.Add(maxSkew)
	if s.presigned {
		to = s.at.Add(s.expires)
	}
	switch {
	case now.Before(from) || now.After(to):
		return errInvalid("RequestExpired", "Request has expired.")
	case s.service != "ec2":
		return errInvalid("SignatureDoesNotMatch", "Credential should be scoped to correct service: 'ec2'.")
	case len(r.Header["Content-Encoding"]) > 0 && !slices.Contains(s.headers, "content-encoding"):
		return errInvalid("IncompleteSignature", "The encoding of the body must be signed: want content-encoding among the signed headers.")
	}
	if !hmac.Equal([]byte(s.of(s.canonical(r, query, body), secret)), []byte(s.hex)) {
		return errInvalid("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

// canonical returns the canonical request. It covers the body as it was sent, the query, and
// the headers that the caller signed. See "Create a signed AWS API
// request" in AWS' IAM User Guide.
func (s *signature) canonical(r *http.Request, query form, body []byte) string {
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	var headers strings.Builder
	for _, name := range s.headers {
		headers.WriteString(name + ":" + signedValue(r, name) + "\n")
	}
	return strings.Join([]string{
		r.Method,
		strings.ReplaceAll(percentEncode(path), "%2F", "/"),
		query.canonical(),
		headers.String(),
		strings.Join(s.headers, ";"),
		hexOf(sha256.Sum256(body)),
	}, "\n")
}

// signedValue returns the value of a header as it is signed.
func signedValue(r *http.Request, name string) string {
	var values []string
	switch key := http.CanonicalHeaderKey(name); key {
	case "Host":
		values = []string{r.Host}
	case "Content-Length":
		values = []string{strconv.FormatInt(r.ContentLength, 10)}
	default:
		values = slices.Clone(r.Header[key])
	}
	for n, value := range values {
		words := strings.FieldsFunc(value, func(c rune) bool { return c == ' ' })
		values[n] = strings.TrimSpace(strings.Join(words, " "))
	}
	return strings.Join(values, ",")
}

// canonical returns the canonical query: all parameters except the signature, sorted by name.
func (all form) canonical() string {
	encoded := make([][2]string, 0, len(all))
	for _, p := range all {
		if p.name != "X-Amz-Signature" {
			encoded = append(encoded, [2]string{percentEncode(p.name), percentEncode(p.value)})
		}
	}
	slices.SortFunc(encoded, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	var text strings.Builder
	for n, p := range encoded {
		if n > 0 {
			text.WriteByte('&')
		}
		text.WriteString(p[0] + "=" + p[1])
	}
	return text.String()
}

// percentEncode escapes all bytes but letters, digits, and - _ . ~
func percentEncode(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

// of returns the signature of a canonical request.
func (s *signature) of(canonical, secret string) string {
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.day, s.region, s.service, terminator} {
		key = keyedHash(key, part)
	}
	scope := strings.Join([]string{s.day, s.region, s.service, terminator}, "/")
	text := strings.Join([]string{algorithm, s.date, scope, hexOf(sha256.Sum256([]byte(canonical)))}, "\n")
	return hex.EncodeToString(keyedHash(key, text))
}

func keyedHash(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text)) // never fails
	return h.Sum(nil)
}

func hexOf(sum [sha256.Size]byte) string { return hex.EncodeToString(sum[:]) }
