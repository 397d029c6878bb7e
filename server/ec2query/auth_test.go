package ec2query_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/servertest"
)

const keys = `{"credentials": [
	{"access_key_id": "AKIAALICE", "secret_access_key": "wJalr/XUtn+FEMI", "principal": "alice@example.com"},
	{"access_key_id": "AKIA/BOB", "secret_access_key": "s", "principal": "bob"}
]}`

func verifying(t *testing.T) (*servertest.Server, *logged) {
	t.Helper()
	known, err := ec2query.ParseCredentials(strings.NewReader(keys))
	if err != nil {
		t.Fatal(err)
	}
	log := &logged{}
	return servertest.New(t, servertest.Options{EC2Credentials: known, Logger: log.logger()}), log
}

func signedBy(key, secret, token string) func(*ec2.Options) {
	return func(o *ec2.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(key, secret, token)
		o.Retryer = aws.NopRetryer{}
	}
}

func TestTheSDKsSignatureIsVerified(t *testing.T) {
	srv, log := verifying(t)
	out, err := sdk(t, srv, signedBy("AKIAALICE", "wJalr/XUtn+FEMI", "")).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{documented}})
	if err != nil || len(out.StartingInstances) != 1 {
		t.Fatal(out, err)
	}
	events, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{documented}})
	if err != nil || events.GetEvents()[1].GetCause().GetPrincipal() != "alice@example.com" {
		t.Errorf("%v, %v", events, err)
	}
	describe := &ec2.DescribeInstancesInput{InstanceIds: []string{documented}}
	if _, err := sdk(t, srv, signedBy("AKIA/BOB", "s", "a session token")).DescribeInstances(patient(t), describe); err != nil {
		t.Errorf("an access key with a slash and a session token: %v", err)
	}
	_, err = sdk(t, srv, signedBy("AKIAALICE", "wrong", "")).DescribeInstances(patient(t), describe)
	wantAPIError(t, err, 403, "SignatureDoesNotMatch", "")
	if lines := callLines(t, log, requestIDOf(t, err)); lines[0]["principal_unverified"] != "AKIAALICE" || lines[0]["principal"] != nil {
		t.Errorf("%v", lines)
	}
	_, err = sdk(t, srv, signedBy("AKIANOBODY", "s", "")).DescribeInstances(patient(t), describe)
	wantAPIError(t, err, 401, "AuthFailure", "AWS was not able to validate the provided access credentials")
	_, err = sdk(t, srv, once, func(o *ec2.Options) { o.Credentials = aws.AnonymousCredentials{} }).DescribeInstances(patient(t), describe)
	wantAPIError(t, err, 403, "MissingAuthenticationToken", "Request is missing Authentication Token")
}

// signing is a request of alice, and what is done to it before and after it is signed.
type signing struct {
	service string
	at      time.Time
	// presign puts the signature into the query, valid for a minute; else it is in the
	// header.
	presign bool
	before  func(*http.Request)
	after   func(*http.Request)
	form    string
	// sent takes the place of the form once that is signed.
	sent string
}

// do signs a request and sends it.
func (s signing) do(t *testing.T, client *http.Client, endpoint string) answered {
	t.Helper()
	method := http.MethodPost
	if s.presign {
		method, endpoint, s.form = http.MethodGet, endpoint+"/?"+s.form, ""
	}
	r, err := http.NewRequestWithContext(patient(t), method, endpoint, strings.NewReader(s.form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if s.before != nil {
		s.before(r)
	}
	hash := sha256.Sum256([]byte(s.form))
	alice := aws.Credentials{AccessKeyID: "AKIAALICE", SecretAccessKey: "wJalr/XUtn+FEMI"}
	if s.presign {
		r.Header = http.Header{}
		query := r.URL.Query()
		query.Set("X-Amz-Expires", "60")
		r.URL.RawQuery = query.Encode()
		signed, _, err := v4.NewSigner().PresignHTTP(context.Background(), alice, r, hex.EncodeToString(hash[:]), s.service, "us-east-1", s.at)
		if err != nil {
			t.Fatal(err)
		}
		r.URL, _ = url.Parse(signed)
	} else if err := v4.NewSigner().SignHTTP(context.Background(), alice, r, hex.EncodeToString(hash[:]), s.service, "us-east-1", s.at); err != nil {
		t.Fatal(err)
	}
	if s.sent != "" {
		r.Body, r.ContentLength, r.GetBody = io.NopCloser(strings.NewReader(s.sent)), int64(len(s.sent)), nil
	}
	if s.after != nil {
		s.after(r)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, response)
}

// signsAgent has the user agent signed, which the signer leaves out by its canonical name.
func signsAgent(r *http.Request) { r.Header["user-agent"] = []string{"java/1.12"} }

func sendsAgent(agent string) func(*http.Request) {
	return func(r *http.Request) {
		delete(r.Header, "user-agent")
		r.Header.Set("User-Agent", agent)
	}
}

func TestWhatIsSignedCannotBeChanged(t *testing.T) {
	srv, _ := verifying(t)
	client := httpClient(t)
	const form = "Action=DescribeInstances" + versioned + "&InstanceId.1=" + documented
	now := time.Now()
	replaced := func(header, from, to string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set(header, strings.Replace(r.Header.Get(header), from, to, 1))
		}
	}
	query := func(name string, change func(string) string) func(*http.Request) {
		return func(r *http.Request) {
			q := r.URL.Query()
			if q.Set(name, change(q.Get(name))); q.Get(name) == "" {
				q.Del(name)
			}
			r.URL.RawQuery = q.Encode()
		}
	}
	const mismatch, unclear = "SignatureDoesNotMatch", "IncompleteSignature"
	for _, test := range []struct {
		name string
		signing
		status int
		code   string
	}{
		{"as it was signed", signing{}, 200, ""},
		{"with a header that is signed", signing{before: func(r *http.Request) { r.Header.Set("X-Custom", "  a   b ") }}, 200, ""},
		{"a header that is signed and changed", signing{before: func(r *http.Request) { r.Header.Set("X-Custom", "a") }, after: replaced("X-Custom", "a", "b")}, 403, mismatch},
		{"a header that is signed and missing", signing{before: func(r *http.Request) { r.Header.Set("X-Custom", "a") }, after: func(r *http.Request) { r.Header.Del("X-Custom") }}, 403, mismatch},
		{"with the user agent signed", signing{before: signsAgent, after: sendsAgent("java/1.12")}, 200, ""},
		{"a user agent that is signed and changed", signing{before: signsAgent, after: sendsAgent("java/1.13")}, 403, mismatch},
		{"a header that is not signed", signing{after: func(r *http.Request) { r.Header.Set("User-Agent", "other") }}, 200, ""},
		{"another body", signing{sent: strings.Replace(form, documented, "i-0a000000000000001", 1)}, 403, mismatch},
		{"another body that claims to be unsigned", signing{sent: strings.Replace(form, documented, "i-0a000000000000001", 1), after: func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		}}, 403, mismatch},
		{"a query that was not signed", signing{after: func(r *http.Request) { r.URL.RawQuery = "DryRun=true" }}, 403, mismatch},
		{"a query that was not signed, with a semicolon", signing{after: func(r *http.Request) { r.URL.RawQuery = "NextToken=x;" }}, 400, "InvalidRequest"},
		{"a query beside the body", signing{before: func(r *http.Request) { r.URL.RawQuery = "Filter.1.Name=tenancy&Filter.1.Value.1=a%3Bb+c%2Bd" }}, 200, ""},
		{"a second Authorization header", signing{after: func(r *http.Request) {
			r.Header.Add("Authorization", "AWS4-HMAC-SHA256 Credential=AKIA/BOB/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0")
		}}, 400, unclear},
		{"a second date", signing{after: func(r *http.Request) { r.Header.Add("X-Amz-Date", "20260101T000000Z") }}, 400, unclear},
		{"a second signature in the header", signing{after: replaced("Authorization", "Signature=", "Signature=0, Signature=")}, 400, unclear},
		{"a signature in the query too", signing{after: func(r *http.Request) {
			r.URL.RawQuery = "X-Amz-Credential=" + url.QueryEscape("AKIA/BOB/20260101/us-east-1/ec2/aws4_request")
		}}, 400, unclear},
		{"an encoding of the body that is not signed", signing{after: func(r *http.Request) { r.Header.Set("Content-Encoding", "identity") }}, 400, unclear},
		{"an encoding of the body that is signed", signing{before: func(r *http.Request) { r.Header.Set("Content-Encoding", "identity") }}, 200, ""},
		{"a date with a fraction of a second", signing{after: replaced("X-Amz-Date", "Z", ".0Z")}, 400, unclear},
		{"another path", signing{before: func(r *http.Request) { r.URL.Path = "/a b" }, after: func(r *http.Request) { r.URL.Path = "/ab" }}, 403, mismatch},
		{"a path that is signed", signing{before: func(r *http.Request) { r.URL.Path = "/a b/c" }}, 200, ""},
		{"another host", signing{after: func(r *http.Request) { r.Host = "other:80" }}, 403, mismatch},
		{"another signature", signing{after: func(r *http.Request) {
			text := r.Header.Get("Authorization")
			r.Header.Set("Authorization", text[:len(text)-1]+map[bool]string{true: "1", false: "0"}[strings.HasSuffix(text, "0")])
		}}, 403, mismatch},
		{"another access key", signing{after: replaced("Authorization", "AKIAALICE", "AKIA/BOB")}, 403, mismatch},
		{"another region in the scope", signing{after: replaced("Authorization", "us-east-1", "us-west-2")}, 403, mismatch},
		{"another service", signing{service: "s3"}, 403, mismatch},
		{"no host among what is signed", signing{after: replaced("Authorization", "host;", "")}, 400, unclear},
		{"no signature", signing{after: replaced("Authorization", "Signature=", "Sig=")}, 400, unclear},
		{"no scope", signing{after: replaced("Authorization", "/aws4_request", "")}, 400, unclear},
		{"another algorithm", signing{after: replaced("Authorization", "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")}, 400, unclear},
		{"another day than in the scope", signing{after: replaced("Authorization", now.UTC().Format("20060102"), "20200101")}, 400, unclear},
		{"a date that is none", signing{after: func(r *http.Request) { r.Header.Set("X-Amz-Date", "today") }}, 400, unclear},
		{"Signature Version 2", signing{sent: form + "&AWSAccessKeyId=AKIAALICE&SignatureVersion=2&SignatureMethod=HmacSHA256&Signature=s", after: func(r *http.Request) { r.Header.Del("Authorization") }}, 401, "AuthFailure"},
		{"Signature Version 2 beside Version 4", signing{before: func(r *http.Request) { r.URL.RawQuery = "AWSAccessKeyId=AKIA%2FBOB&SignatureVersion=2&Signature=s" }}, 400, unclear},
		{"with a session token among the parameters", signing{before: func(r *http.Request) { r.URL.RawQuery = "SecurityToken=t" }}, 200, ""},
		{"nothing at all", signing{after: func(r *http.Request) { r.Header.Del("Authorization") }}, 403, "MissingAuthenticationToken"},
		{"14 minutes ago", signing{at: now.Add(-14 * time.Minute)}, 200, ""},
		{"16 minutes ago", signing{at: now.Add(-16 * time.Minute)}, 400, "RequestExpired"},
		{"in 14 minutes", signing{at: now.Add(14 * time.Minute)}, 200, ""},
		{"in 16 minutes", signing{at: now.Add(16 * time.Minute)}, 400, "RequestExpired"},

		{"presigned", signing{presign: true}, 200, ""},
		{"presigned and changed", signing{presign: true, after: query("InstanceId.1", func(string) string { return "i-0a000000000000001" })}, 403, mismatch},
		{"presigned and changed, with a semicolon", signing{presign: true, after: func(r *http.Request) { r.URL.RawQuery += "&NextToken=x;" }}, 400, "InvalidRequest"},
		{"presigned, and signed in a header too", signing{presign: true, after: func(r *http.Request) {
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIA/BOB/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0")
		}}, 400, unclear},
		{"presigned for longer than it was", signing{presign: true, at: now.Add(-2 * time.Minute), after: query("X-Amz-Expires", func(string) string { return "600" })}, 403, mismatch},
		{"presigned and over", signing{presign: true, at: now.Add(-2 * time.Minute)}, 400, "RequestExpired"},
		{"presigned without an end", signing{presign: true, after: query("X-Amz-Expires", func(string) string { return "" })}, 400, unclear},
		{"presigned for more than a week", signing{presign: true, after: query("X-Amz-Expires", func(string) string { return "604801" })}, 400, unclear},
		{"presigned without a signature", signing{presign: true, after: query("X-Amz-Signature", func(string) string { return "" })}, 400, unclear},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.signing
			s.form = form
			if s.service == "" {
				s.service = "ec2"
			}
			if s.at.IsZero() {
				s.at = now
			}
			if got := s.do(t, client, srv.EC2()); got.status != test.status || got.code != test.code {
				t.Errorf("%d %s: %s, want %d %s", got.status, got.code, got.message, test.status, test.code)
			}
		})
	}
}

func TestWithoutCredentialsAnAccessKeyIsAName(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	for name, test := range map[string]struct{ key, code string }{
		"a name":               {"deploy bot", ""},
		"one that is too long": {strings.Repeat("x", 129), "AuthFailure"},
	} {
		_, err := sdk(t, srv, signedBy(test.key, "whatever", "")).RebootInstances(patient(t), &ec2.RebootInstancesInput{InstanceIds: []string{"i-0a000000000000001"}})
		if test.code == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		} else if test.code != "" {
			wantAPIError(t, err, 401, test.code, "")
		}
	}
	if got := post(t, httpClient(t), srv.EC2(), "Action=DescribeInstances"+versioned); got.status != 200 {
		t.Errorf("an unknown key: %v", got)
	}
}

func TestWithoutCredentialsANameIsTakenFromASignatureThatIsWrong(t *testing.T) {
	log := &logged{}
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	client := httpClient(t)
	replace := func(from, to string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), from, to, 1))
		}
	}
	now := time.Now()
	for name, test := range map[string]struct {
		presign bool
		after   func(*http.Request)
	}{
		"no date":               {false, func(r *http.Request) { r.Header.Del("X-Amz-Date") }},
		"another day":           {false, replace(now.UTC().Format("20060102"), "20200101")},
		"another algorithm":     {false, replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")},
		"no signature":          {false, replace("Signature=", "Sig=")},
		"a scope that is cut":   {false, replace("/aws4_request", "")},
		"presigned, no end":     {true, func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "X-Amz-Expires=60", "", 1) }},
		"signed as it is meant": {false, func(*http.Request) {}},
	} {
		got := signing{service: "ec2", at: now, presign: test.presign, after: test.after, form: "Action=DescribeInstances" + versioned}.do(t, client, srv.EC2())
		if lines := callLines(t, log, got.requestID); got.status != 200 || lines[0]["principal_unverified"] != "AKIAALICE" {
			t.Errorf("%s: %d, %v", name, got.status, lines)
		}
	}
}

func TestCredentialsFilesThatAreWrong(t *testing.T) {
	const one = `{"access_key_id": "AKIA", "secret_access_key": "topsecret", "principal": "alice"}`
	for name, test := range map[string]struct{ file, says string }{
		"empty":                      {"", "JSON"},
		"not JSON":                   {"credentials: []", "JSON"},
		"no credentials":             {`{"credentials": []}`, "no credentials"},
		"an unknown field":           {`{"credentials": [{"user": "topsecret"}]}`, "user"},
		"no secret":                  {`{"credentials": [{"access_key_id": "AKIA", "principal": "alice"}]}`, "credentials[0]"},
		"twice":                      {`{"credentials": [` + one + "," + one + `]}`, "AKIA comes twice"},
		"a principal that is none":   {strings.Replace(`{"credentials": [`+one+`]}`, "alice", "älice", 1), "principal"},
		"something behind the end":   {`{"credentials": [` + one + `]} {}`, "behind"},
		"something that was cut off": {`{"credentials": [` + one, "JSON"},
	} {
		_, err := ec2query.ParseCredentials(strings.NewReader(test.file))
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
