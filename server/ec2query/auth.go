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

	"github.com/instanced/instanced/internal/lifecycle"
)

// anonymous is the principal of a request that names none.
const anonymous = "anonymous"

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

// version2 are the parameters of Signature Version 2, by which requests are not verified:
// they get what Regions of EC2 answer that do not know it any more.
var version2 = []string{"AWSAccessKeyId", "Expires", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp"}

var errNotValidated = errInvalid(codeAuthFailure, "AWS was not able to validate the provided access credentials")

// identify finds out who calls. Without credentials the access key id is the name of a
// principal, and anybody may take it.
func (d *Door) identify(r *http.Request, query form, body []byte, c *call) error {
	for _, p := range query {
		if strings.HasPrefix(p.name, amzPrefix) {
			c.args.ignore(p.name)
		}
	}
	s, err := readSignature(r.Header, query)
	if s == nil && err != nil {
		return err
	}
	c.args.ignore("SecurityToken") // means nothing here, in whatever version
	old := c.args.has("AWSAccessKeyId") || c.args.has("SignatureVersion")
	if old && s != nil {
		return errTwoSigned
	}
	keys := d.keys()
	if keys == nil {
		name := c.args.text("AWSAccessKeyId")
		c.args.ignore(version2...)
		if s != nil {
			name = s.accessKeyID
		}
		if err := refuseForms(r, old || s != nil); err != nil {
			return err
		}
		if name == "" {
			return nil
		}
		if !isName(name) {
			return errInvalid(codeAuthFailure, "The access key id is not the name of a principal: want at most %d characters, all of printable ASCII.", lifecycle.MaxPrincipalLength)
		}
		c.caller.Principal = name
		return nil
	}
	switch {
	case err != nil:
		return err
	case old:
		return errNotValidated
	case s == nil:
		return errNoToken
	}
	if isName(s.accessKeyID) {
		c.caller.Principal = s.accessKeyID // claimed, for the log, until it is proven
	}
	known, ok := keys[s.accessKeyID]
	if !ok {
		return errNotValidated
	}
	if err := s.verify(r, query, body, known.secret, time.Now()); err != nil {
		return err
	}
	c.caller.Principal, c.verified = known.principal, true
	return nil
}

// refuseBrowsers protects a door that asks nobody for a secret from the web pages that
// somebody on the same machine looks at: they can send forms to loopback, and names of
// their own can be made to lead there. It refuses what browsers say of themselves, and
// whatever is not addressed to loopback by a name or address that nobody else can have.
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

// refuseForms refuses what a web page could have sent: a request that has nothing but what
// a form, a link or a picture can have. A page may not set headers of its own choice at
// another origin, unless that allows it when asked, which this door never does. Programs
// that sign in their parameters have no such header: they are known by their user agent,
// which pages may not set either.
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

// isBrowser reports whether a user agent may be that of a browser, which all begin alike.
// Perl's AnyEvent::HTTP, by which VM::EC2 calls, begins as they do.
func isBrowser(agent string) bool {
	mozilla := strings.HasPrefix(agent, "Mozilla/") && !strings.Contains(agent, "; AnyEvent-HTTP/")
	return agent == "" || mozilla || strings.HasPrefix(agent, "Opera/")
}
