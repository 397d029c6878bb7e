package ec2query

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/instanced/instanced/internal/lifecycle"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	// maxSkew is how far the clock of a caller may be off.
	maxSkew = 15 * time.Minute
	// maxExpiry is for how long a presigned request may be valid.
	maxExpiry  = 7 * 24 * time.Hour
	amzTime    = "20060102T150405Z"
	anonymous  = "anonymous"
	queryParts = "X-Amz-"
)

// credential is the secret of an access key, and whose it is.
type credential struct{ secret, principal string }

// Credentials are the access keys of the callers.
type Credentials map[string]credential

// ParseCredentials reads a file of access keys: JSON of the form
//
//	{"credentials": [{"access_key_id": "…", "secret_access_key": "…", "principal": "…"}]}
//
// It is strict: an unknown field, an empty one, an access key that comes twice and a file
// without any are errors. No error quotes a secret.
func ParseCredentials(file io.Reader) (Credentials, error) {
	var content struct {
		Credentials []struct {
			AccessKeyID     string `json:"access_key_id"`
			SecretAccessKey string `json:"secret_access_key"`
			Principal       string `json:"principal"`
		} `json:"credentials"`
	}
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&content); err != nil {
		return nil, fmt.Errorf("it is not JSON of the right form: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the end of the JSON")
	}
	all := make(Credentials)
	for i, c := range content.Credentials {
		at := fmt.Sprintf("credentials[%d]", i)
		switch _, twice := all[c.AccessKeyID]; {
		case c.AccessKeyID == "" || c.SecretAccessKey == "" || c.Principal == "":
			return nil, fmt.Errorf("%s: want access_key_id, secret_access_key and principal", at)
		case twice:
			return nil, fmt.Errorf("%s: the access key %s comes twice", at, c.AccessKeyID)
		case !isName(c.Principal):
			return nil, fmt.Errorf("%s: the principal has more than %d characters, or one that is not printable ASCII", at, lifecycle.MaxPrincipalLength)
		}
		all[c.AccessKeyID] = credential{secret: c.SecretAccessKey, principal: c.Principal}
	}
	if len(all) == 0 {
		return nil, errors.New("it has no credentials")
	}
	return all, nil
}

// isName reports whether a text can be the name of a principal.
func isName(s string) bool { return s != "" && printable(s, lifecycle.MaxPrincipalLength) }

// printable reports whether a text is at most so many characters of printable ASCII.
func printable(s string, most int) bool {
	return len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// signature is what a request says of how it was signed.
type signature struct {
	accessKeyID string
	region      string
	service     string
	day         string
	headers     []string
	hex         string
	at          time.Time
	// presigned requests carry all of it in their query, and are valid for as long as
	// expires says.
	presigned bool
	expires   time.Duration
}

var (
	errNoToken = errInvalid("MissingAuthenticationToken", "Request is missing Authentication Token")
	errUnclear = errInvalid("IncompleteSignature", "The request signature does not conform to AWS standards.")
)

// readSignature returns nothing for a request that is not signed. What can be read of a
// signature that is wrong comes with the error.
func readSignature(r *http.Request) (*signature, error) {
	if query := r.URL.Query(); query.Has("X-Amz-Signature") || query.Has("X-Amz-Credential") {
		return presignature(query)
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return nil, nil
	}
	method, rest, _ := strings.Cut(header, " ")
	s, scoped := &signature{}, false
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			scoped = s.scope(value)
		case "SignedHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.hex = value
		}
	}
	var err error
	if s.at, err = time.Parse(amzTime, r.Header.Get("X-Amz-Date")); err != nil || !scoped || method != algorithm {
		return s, errUnclear
	}
	return s, s.whole()
}

func presignature(query url.Values) (*signature, error) {
	s := &signature{presigned: true, headers: strings.Split(query.Get("X-Amz-SignedHeaders"), ";"), hex: query.Get("X-Amz-Signature")}
	scoped := s.scope(query.Get("X-Amz-Credential"))
	seconds, err := strconv.Atoi(query.Get("X-Amz-Expires"))
	s.expires = time.Duration(seconds) * time.Second
	if err != nil || seconds < 0 || s.expires > maxExpiry || query.Get("X-Amz-Algorithm") != algorithm || !scoped {
		return s, errUnclear
	}
	if s.at, err = time.Parse(amzTime, query.Get("X-Amz-Date")); err != nil {
		return s, errUnclear
	}
	return s, s.whole()
}

// scope reads a credential scope. An access key id may have slashes in it, unless the scope
// is not whole: then it ends at the first one.
func (s *signature) scope(text string) bool {
	parts := strings.Split(text, "/")
	n := len(parts)
	if n < 5 || parts[n-1] != "aws4_request" {
		s.accessKeyID = parts[0]
		return false
	}
	s.accessKeyID = strings.Join(parts[:n-4], "/")
	s.day, s.region, s.service = parts[n-4], parts[n-3], parts[n-2]
	return s.accessKeyID != ""
}

// whole refuses what has not all parts, or parts that do not fit together.
func (s *signature) whole() error {
	if s.accessKeyID == "" || s.hex == "" || !slices.Contains(s.headers, "host") || s.day != s.at.Format("20060102") {
		return errUnclear
	}
	return nil
}

// identify finds out who calls. Without credentials the access key id is the name of a
// principal, and anybody may take it.
func (d *Door) identify(r *http.Request, body []byte, c *call) error {
	for name := range c.args.node.children {
		if strings.HasPrefix(name, queryParts) {
			c.args.ignore(name)
		}
	}
	s, err := readSignature(r)
	if d.credentials == nil {
		if s != nil && s.accessKeyID != "" {
			if !isName(s.accessKeyID) {
				return errInvalid(codeAuthFailure, "The access key id is not the name of a principal: want at most %d characters, all of printable ASCII.", lifecycle.MaxPrincipalLength)
			}
			c.caller.Principal = s.accessKeyID
		}
		return nil
	}
	switch {
	case err != nil:
		return err
	case s == nil && c.args.has("SignatureVersion"): // Signature Version 2
		return errUnclear
	case s == nil:
		return errNoToken
	}
	if isName(s.accessKeyID) {
		c.caller.Principal = s.accessKeyID // claimed, for the log, until it is proven
	}
	known, ok := d.credentials[s.accessKeyID]
	if !ok {
		return errInvalid(codeAuthFailure, "AWS was not able to validate the provided access credentials")
	}
	if err := s.verify(r, body, known.secret, time.Now()); err != nil {
		return err
	}
	c.caller.Principal, c.verified = known.principal, true
	return nil
}

// verify signs the request again, with the secret, and compares.
func (s *signature) verify(r *http.Request, body []byte, secret string, now time.Time) error {
	from, to := s.at.Add(-maxSkew), s.at.Add(maxSkew)
	if s.presigned {
		to = s.at.Add(s.expires)
	}
	if now.Before(from) || now.After(to) {
		return errInvalid("RequestExpired", "Request has expired.")
	}
	if s.service != "ec2" {
		return errInvalid("SignatureDoesNotMatch", "Credential should be scoped to correct service: 'ec2'.")
	}
	again, err := s.again(r, body, secret)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(again), []byte(s.hex)) != 1 {
		return errInvalid("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

// again returns the signature that the request would have with the secret. It covers
// the body as it came, the query, and the headers that the caller signed.
func (s *signature) again(r *http.Request, body []byte, secret string) (string, error) {
	copied := &http.Request{Method: r.Method, URL: new(*r.URL), Host: r.Host, Header: make(http.Header)}
	copied.URL.Host = r.Host
	for _, name := range s.headers {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Host":
		case "Content-Length":
			copied.ContentLength = r.ContentLength
		case "User-Agent", "Expect", "X-Amzn-Trace-Id":
			// The signer leaves these out, by their canonical names. What others have
			// signed must be covered: the Java SDK of version 1 signs the first.
			copied.Header[strings.ToLower(name)] = slices.Clone(r.Header[name])
		default:
			copied.Header[name] = slices.Clone(r.Header[name])
		}
	}
	credentials := aws.Credentials{AccessKeyID: s.accessKeyID, SecretAccessKey: secret}
	hash := sha256.Sum256(body)
	payload := hex.EncodeToString(hash[:])
	signer := v4.NewSigner()
	if !s.presigned {
		if err := signer.SignHTTP(context.Background(), credentials, copied, payload, s.service, s.region, s.at); err != nil {
			return "", err
		}
		_, again, _ := strings.Cut(copied.Header.Get("Authorization"), "Signature=")
		return again, nil
	}
	query := copied.URL.Query()
	query.Del("X-Amz-Signature")
	copied.URL.RawQuery = query.Encode()
	signed, _, err := signer.PresignHTTP(context.Background(), credentials, copied, payload, s.service, s.region, s.at)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(signed)
	if err != nil {
		return "", err
	}
	return u.Query().Get("X-Amz-Signature"), nil
}

// refuseBrowsers protects a door that asks nobody for a secret from the web pages that
// somebody on the same machine looks at: they can send forms to loopback, and names of
// their own can be made to lead there. No SDK sends these headers; and what leads here is
// an address, or a name that no public zone has.
func refuseBrowsers(r *http.Request) error {
	for _, name := range []string{"Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode"} {
		if len(r.Header[name]) > 0 {
			return errInvalid("AccessDenied", "Requests of browsers are not allowed without credentials.")
		}
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(strings.TrimSuffix(strings.ToLower(host), "."), "[]")
	private := !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || strings.HasSuffix(host, ".internal")
	if net.ParseIP(host) == nil && !private {
		return errInvalid("AccessDenied", "The host name %s is not allowed without credentials; want localhost or an address.", clip(host))
	}
	return nil
}
