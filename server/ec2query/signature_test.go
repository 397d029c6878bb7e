package ec2query

import (
	"context"
	"crypto/sha256"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// sentRequest is what stands in a request that says what is to be done.
type sentRequest struct {
	method, query, body string
	header              http.Header
}

// signBySDK signs a request as the SDK does, in its header or in its query.
func (s *sentRequest) signBySDK(t testing.TB, secret string, presign bool) {
	t.Helper()
	r := s.request()
	payload := hexOf(sha256.Sum256([]byte(s.body)))
	alice := aws.Credentials{AccessKeyID: "AKIAALICE", SecretAccessKey: secret}
	if !presign {
		if err := v4.NewSigner().SignHTTP(context.Background(), alice, r, payload, "ec2", "us-east-1", time.Now()); err != nil {
			t.Fatal(err)
		}
		s.query, s.header = r.URL.RawQuery, r.Header
		return
	}
	r.URL.RawQuery = strings.TrimPrefix(r.URL.RawQuery+"&X-Amz-Expires=60", "&")
	signed, header, err := v4.NewSigner().PresignHTTP(context.Background(), alice, r, payload, "ec2", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	s.query, s.header = u.RawQuery, header
}

func (s *sentRequest) request() *http.Request {
	header := s.header.Clone()
	if header == nil {
		header = http.Header{"Amz-Sdk-Request": {"attempt=1"}}
	}
	return &http.Request{
		Method: s.method, URL: &url.URL{Scheme: "http", Host: "127.0.0.1:8580", Path: "/", RawQuery: s.query}, Host: "127.0.0.1:8580",
		Header: header, ContentLength: int64(len(s.body)),
	}
}

// executed returns the parameters that a server would carry out, as one string.
func (s *sentRequest) executed(d *Server) (string, error) {
	c := &call{}
	if err := d.parse(s.request(), []byte(s.body), s.body, c, func() {}); err != nil {
		return "", err
	}
	for name := range c.args.node.children {
		if strings.HasPrefix(name, amzPrefix) {
			delete(c.args.node.children, name)
		}
	}
	var text strings.Builder
	c.args.node.print(&text, "")
	return text.String(), nil
}

// FuzzWhatIsSignedCannotBeChanged lets the SDK sign a request, changes it, and wants it
// refused, unless it still says the same.
func FuzzWhatIsSignedCannotBeChanged(f *testing.F) {
	const query, body = "Action=CreateTags&Version=2016-11-15&ResourceId.1=i-1234567890abcdef0", "Tag.1.Key=a%3Bb&Tag.1.Value=c+d%2Be"
	for _, presign := range []bool{false, true} {
		f.Add(query, body, presign, uint16(0), uint8(0), "Tag.2.Key=x;&")
		f.Add(query, body, presign, uint16(6), uint8(0), "AdditionalInfo=;&")
		f.Add(query, body, presign, uint16(len(query)-1), uint8(1), "1")
		f.Add(query, "", presign, uint16(1000), uint8(0), "Tag.1.Key=x")
		f.Add("A=%C3%A4&B=~-_.&C=+%20", body, presign, uint16(2), uint8(6), "ä")
		f.Add("", query+"&"+body, presign, uint16(300), uint8(3), "%")
	}
	const secret = "wJalr/XUtn+FEMI"
	server := &Server{}
	server.SetCredentials(Credentials{"AKIAALICE": {secret: secret, principal: "alice"}})
	f.Fuzz(func(t *testing.T, query, body string, presign bool, at uint16, cut uint8, insert string) {
		if _, err := tree(query + "&" + body); err != nil || strings.Contains(query, amzPrefix) || strings.Contains(body, amzPrefix) {
			return
		}
		s := &sentRequest{method: http.MethodPost, query: query, body: body}
		plain := &Server{}
		meant, err := s.executed(plain)
		if err != nil {
			t.Fatal(err)
		}
		s.signBySDK(t, secret, presign)
		if got, err := s.executed(server); err != nil || got != meant {
			t.Fatalf("what the SDK signed of %q and %q is %q: %v", query, body, got, err)
		}
		const between = "\x00"
		text := s.query + between + s.body
		from := min(int(at), len(text))
		changed := text[:from] + insert + text[min(from+int(cut), len(text)):]
		s.query, s.body, _ = strings.Cut(changed, between)
		if got, err := s.executed(server); err == nil && got != meant {
			t.Errorf("%q was signed, and %q is carried out:\n%s", text, changed, got)
		}
	})
}

func TestASignatureCoversWhatIsCarriedOut(t *testing.T) {
	const secret = "s"
	server := &Server{}
	server.SetCredentials(Credentials{"AKIAALICE": {secret: secret, principal: "alice"}})
	for _, presign := range []bool{false, true} {
		s := &sentRequest{method: http.MethodPost, query: "A=1&B=a%3Bb+c%2Bd&C=%C3%A4", body: "D=~"}
		meant, err := s.executed(&Server{})
		if err != nil {
			t.Fatal(err)
		}
		s.signBySDK(t, secret, presign)
		if got, err := s.executed(server); err != nil || got != meant {
			t.Fatalf("as it was signed it is %q: %v", got, err)
		}
		whole := *s
		for _, part := range []*string{&s.query, &s.body} {
			text := *part
			for at := range text {
				for c := range 256 {
					*part = text[:at] + string([]byte{byte(c)}) + text[at+1:]
					if got, err := s.executed(server); err == nil && got != meant {
						t.Errorf("presigned %t: with %q for %q it is carried out as %q", presign, *part, text, got)
					}
				}
			}
			*s = whole
		}
	}
}
