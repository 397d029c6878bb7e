package instance

import (
	"slices"
	"strings"
)

// A principal is one text wherever it is kept: in causes, client tokens and shares. A name that
// a caller claims is the text itself. A name that was verified has the prefix of the method of
// authentication, which no claimed name may have, so that the two are never equal.
const certificatePrefix = "x509:"

// reservedPrefixes belong to all methods, present and planned: OpenID Connect is to come.
var reservedPrefixes = []string{certificatePrefix, "oidc:"}

// MaxVerifiedNameLength is the maximum length of a verified name, in bytes.
const MaxVerifiedNameLength = 512

// MaxPrincipalLength is the maximum length of a principal, in bytes.
const MaxPrincipalLength = MaxVerifiedNameLength + len(certificatePrefix)

// CertificatePrincipal returns the principal with this name in a verified client certificate.
func CertificatePrincipal(name string) string { return certificatePrefix + name }

// ReservedPrefix returns the prefix of verified principals that a claimed name has, or "".
func ReservedPrefix(name string) string {
	i := slices.IndexFunc(reservedPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	if i < 0 {
		return ""
	}
	return reservedPrefixes[i]
}
