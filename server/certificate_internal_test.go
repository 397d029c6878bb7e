package server

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// FuzzCertificatePrincipal: a principal is text of a URI or of a DNS name in the certificate,
// and it can be told which.
func FuzzCertificatePrincipal(f *testing.F) {
	names := func(list ...asn1.RawValue) []byte {
		der, err := asn1.Marshal(list)
		if err != nil {
			f.Fatal(err)
		}
		return der
	}
	name := func(tag int, text string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(text)}
	}
	for _, der := range [][]byte{
		nil,
		{0x30},
		{0x30, 0x80},
		names(), names(name(tagURI, "spiffe://example.org/a")), names(name(tagDNSName, "Example.org")),
		names(name(tagURI, "spiffe://example.org/a"), name(tagURI, "spiffe://example.org/b")),
		names(name(tagDNSName, "spiffe://example.org/a")), names(name(tagURI, "example.org")),
		names(name(tagDNSName, "*.example.org")), names(name(tagURI, ":")), names(name(tagURI, "a:\x00")),
		append(names(name(tagURI, "spiffe://example.org/a")), 0),
	} {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		principal, err := certificatePrincipal(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: der}}})
		if err != nil {
			return
		}
		if len(principal) == 0 || len(principal) > instance.MaxVerifiedNameLength {
			t.Errorf("a principal of %d characters", len(principal))
		}
		for _, c := range []byte(principal) {
			if c <= ' ' || c > '~' {
				t.Errorf("%q is not printable", principal)
			}
		}
		uris, dns, err := alternativeNames(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: der}}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(principal, ":") {
			if len(uris) != 1 || uris[0] != principal {
				t.Errorf("%q is not the only URI of %q", principal, uris)
			}
		} else if len(uris) != 0 || len(dns) != 1 || !strings.EqualFold(dns[0], principal) {
			t.Errorf("%q is not the only name of %q, %q", principal, uris, dns)
		}
	})
}
