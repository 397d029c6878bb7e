package server

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/instanced/instanced/internal/instance"
)

// oidSubjectAltName and the tags are defined in RFC 5280, section 4.2.1.6.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

const (
	tagDNSName = 2
	tagURI     = 6
)

// certificatePrincipal returns the name of the caller in a verified client certificate: its URI
// SAN, such as a SPIFFE ID, exactly as it is there, or else its only DNS SAN, in lower case. The
// error says why the certificate names no principal.
//
// A URI has a colon and a DNS name has none, so that neither can be spelled as the other.
func certificatePrincipal(certificate *x509.Certificate) (string, error) {
	uris, names, err := alternativeNames(certificate)
	switch {
	case err != nil:
		return "", err
	case len(uris) > 1:
		return "", fmt.Errorf("it has %d URI SANs; want one, which names the caller", len(uris))
	case len(uris) == 1:
		return uris[0], checkURI(uris[0])
	case len(names) > 1:
		return "", fmt.Errorf("it has no URI SAN and %d DNS SANs; want a single one of either, which names the caller", len(names))
	case len(names) == 1:
		return strings.ToLower(names[0]), checkDNSName(names[0])
	}
	return "", errors.New("it has neither a URI SAN nor a DNS SAN, which would name the caller")
}

// alternativeNames returns the URIs and DNS names of a certificate as they are in it: the
// parsed URIs of [x509.Certificate] do not always have the same text.
func alternativeNames(certificate *x509.Certificate) (uris, names []string, err error) {
	errMalformed := errors.New("its SANs are malformed")
	for _, extension := range certificate.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		var list asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &list); err != nil || len(rest) > 0 || list.Tag != asn1.TagSequence || !list.IsCompound {
			return nil, nil, errMalformed
		}
		for rest := list.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, nil, errMalformed
			}
			switch {
			case name.Class != asn1.ClassContextSpecific:
			case name.Tag == tagURI:
				uris = append(uris, string(name.Bytes))
			case name.Tag == tagDNSName:
				names = append(names, string(name.Bytes))
			}
		}
	}
	return uris, names, nil
}

func checkURI(uri string) error {
	switch {
	case len(uri) > instance.MaxVerifiedNameLength:
		return fmt.Errorf("its URI SAN has %d characters; at most %d are allowed", len(uri), instance.MaxVerifiedNameLength)
	case strings.IndexByte(uri, ':') <= 0:
		return fmt.Errorf("its URI SAN %q has no scheme", uri)
	case strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("its URI SAN %q has a character that is not allowed in a URI", uri)
	}
	return nil
}

func checkDNSName(name string) error {
	allowed := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_'
	}
	switch {
	case len(name) == 0 || len(name) > 253:
		return fmt.Errorf("its DNS SAN has %d characters; want 1 to 253", len(name))
	case strings.ContainsFunc(name, func(r rune) bool { return !allowed(r) }):
		return fmt.Errorf("its DNS SAN %q is not the name of a host", name)
	}
	return nil
}
