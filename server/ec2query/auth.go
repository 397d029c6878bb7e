package ec2query

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// anonymous is the principal of a request without an access key.
const anonymous = "anonymous"

// credential is the secret of an access key and its principal.
type credential struct{ secret, principal string }

// Credentials are the access keys of the callers.
type Credentials map[string]credential

// ParseCredentials reads a file of access keys: JSON of the form
//
//	{"credentials": [{"access_key_id": "…", "secret_access_key": "…", "principal": "…"}]}
//
// It is strict: unknown fields, empty fields, duplicate access keys and a file without access
// keys are errors. No error quotes a secret.
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
			return nil, fmt.Errorf("%s: the principal has more than %d characters, or one that is not printable ASCII", at, lifecycle.MaxClaimedNameLength)
		case instance.ReservedPrefix(c.Principal) != "":
			return nil, fmt.Errorf("%s: the principal begins with %s, which is reserved for the names of another method of authentication", at, instance.ReservedPrefix(c.Principal))
		}
		all[c.AccessKeyID] = credential{secret: c.SecretAccessKey, principal: c.Principal}
	}
	if len(all) == 0 {
		return nil, errors.New("it has no credentials")
	}
	return all, nil
}

// isName reports whether s can be the name of a principal.
func isName(s string) bool { return s != "" && printable(s, lifecycle.MaxClaimedNameLength) }

// printable reports whether s is at most maxLength characters of printable ASCII.
func printable(s string, maxLength int) bool {
	return len(s) <= maxLength && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// version2 are the parameters of Signature Version 2, which is not supported: such requests
// get the error of EC2 Regions that do not support it either.
var version2 = []string{"AWSAccessKeyId", "Expires", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp"}

var errNotValidated = errInvalid(codeAuthFailure, "AWS was not able to validate the provided access credentials")

// identify identifies the caller. Without credentials the access key id is the name of the
// principal, which anyone may use.
func (s *Server) identify(r *http.Request, query form, body []byte, c *call) error {
	for _, p := range query {
		if strings.HasPrefix(p.name, amzPrefix) {
			c.args.ignore(p.name)
		}
	}
	sig, err := readSignature(r.Header, query)
	if sig == nil && err != nil {
		return err
	}
	c.args.ignore("SecurityToken") // has no meaning here, in any version
	old := c.args.has("AWSAccessKeyId") || c.args.has("SignatureVersion")
	if old && sig != nil {
		return errTwoSigned
	}
	keys := s.keys()
	if keys == nil {
		name := c.args.text("AWSAccessKeyId")
		c.args.ignore(version2...)
		if sig != nil {
			name = sig.accessKeyID
		}
		if err := refuseForms(r, old || sig != nil); err != nil {
			return err
		}
		if name == "" {
			return nil
		}
		if !isName(name) {
			return errInvalid(codeAuthFailure, "The access key id is not the name of a principal: want at most %d characters, all of printable ASCII.", lifecycle.MaxClaimedNameLength)
		}
		if prefix := instance.ReservedPrefix(name); prefix != "" {
			return errInvalid(codeAuthFailure, "The access key id begins with %s, which is reserved for verified names.", prefix)
		}
		c.caller.Principal = name
		return nil
	}
	switch {
	case err != nil:
		return err
	case old:
		return errNotValidated
	case sig == nil:
		return errNoToken
	}
	if isName(sig.accessKeyID) {
		c.caller.Principal = sig.accessKeyID // claimed, for the log, until it is verified
	}
	known, ok := keys[sig.accessKeyID]
	if !ok {
		return errNotValidated
	}
	if err := sig.verify(r, query, body, known.secret, time.Now()); err != nil {
		return err
	}
	c.caller.Principal, c.caller.Authenticated = known.principal, true
	return nil
}

// refuseBrowsers protects an endpoint without credentials from web pages that are open on the
// same machine: they can send forms to loopback, and can make names of their own resolve to
// it. It rejects requests with headers that only browsers send, and requests that are not
// addressed to loopback by a name or address that only loopback can have.
func refuseBrowsers(r *http.Request) error {
	for name := range r.Header {
		if name == "Origin" || name == "Referer" || strings.HasPrefix(name, "Sec-") {
			return errInvalid(codeAccessDenied, "Requests of browsers are not allowed without credentials.")
		}
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(strings.TrimSuffix(strings.ToLower(host), "."), "[]")
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return nil
	}
	return errInvalid(codeAccessDenied, "The host %s is not allowed without credentials; want localhost or an address of loopback.", clip(host))
}

// refuseForms rejects requests that a web page could have sent, by a form, a link or an image.
// A page cannot set arbitrary headers in requests to another origin unless that origin allows
// it in a preflight, which this endpoint never does. Programs that sign in the query have no
// such header; they are recognized by their user agent, which pages cannot set either.
func refuseForms(r *http.Request, signed bool) error {
	for name, values := range r.Header {
		if name == "Authorization" && strings.HasPrefix(values[0], "AWS") || strings.HasPrefix(name, amzPrefix) || strings.HasPrefix(name, "Amz-Sdk-") {
			return nil
		}
	}
	if signed && !isBrowser(r.UserAgent()) {
		return nil
	}
	return errInvalid(codeAccessDenied, "A web page could have sent this request, which is not allowed without credentials; sign it, with any access key and secret.")
}

// isBrowser reports whether a user agent may be a browser's. All browsers begin alike, and
// so does Perl's AnyEvent::HTTP, which VM::EC2 uses.
func isBrowser(agent string) bool {
	mozilla := strings.HasPrefix(agent, "Mozilla/") && !strings.Contains(agent, "; AnyEvent-HTTP/")
	return agent == "" || mozilla || strings.HasPrefix(agent, "Opera/")
}
