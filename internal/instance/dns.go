package instance

import "strings"

// UsualPrivateDNSName returns the private host name that EC2 makes from the private
// address and the Region, as it does unless a subnet says otherwise; empty without an
// address. Source: EC2 User Guide, "EC2 instance hostnames and domains".
//
// The journal does not store names that are the usual ones: the results of this method and
// [Instance.UsualPublicDNSName] must stay the same in all versions.
func (i *Instance) UsualPrivateDNSName() string { return i.privateHost().String() }

// UsualPublicDNSName returns the public host name that EC2 makes from the public address
// and the Region in a VPC with DNS hostnames; empty without an address.
func (i *Instance) UsualPublicDNSName() string { return i.publicHost().String() }

// HasUsualPrivateDNSName reports whether the instance has a private host name, which is
// the usual one. It does not allocate.
func (i *Instance) HasUsualPrivateDNSName() bool { return i.privateHost().is(i.PrivateDNSName) }

// HasUsualPublicDNSName reports whether the instance has a public host name, which is the
// usual one. It does not allocate.
func (i *Instance) HasUsualPublicDNSName() bool { return i.publicHost().is(i.PublicDNSName) }

// host is a host name of EC2 in parts: a prefix, an address with dashes for dots, and a
// domain.
type host struct {
	prefix, address string
	domain          [3]string
}

func (i *Instance) privateHost() host {
	if i.Region == "us-east-1" {
		return host{"ip-", i.PrivateIPAddress, [3]string{".ec2.internal"}}
	}
	return host{"ip-", i.PrivateIPAddress, [3]string{".", i.Region, ".compute.internal"}}
}

func (i *Instance) publicHost() host {
	switch {
	case i.Region == "us-east-1":
		return host{"ec2-", i.PublicIPAddress, [3]string{".compute-1.amazonaws.com"}}
	case strings.HasPrefix(i.Region, "cn-"):
		return host{"ec2-", i.PublicIPAddress, [3]string{".", i.Region, ".compute.amazonaws.com.cn"}}
	}
	return host{"ec2-", i.PublicIPAddress, [3]string{".", i.Region, ".compute.amazonaws.com"}}
}

// String returns the name, empty for no address.
func (h host) String() string {
	if h.address == "" {
		return ""
	}
	name := make([]byte, 0, 64) // on the stack
	name = append(name, h.prefix...)
	for n := range len(h.address) {
		if c := h.address[n]; c != '.' {
			name = append(name, c)
		} else {
			name = append(name, '-')
		}
	}
	for _, part := range h.domain {
		name = append(name, part...)
	}
	return string(name)
}

// is reports whether the host has that name.
func (h host) is(name string) bool {
	rest, ok := strings.CutPrefix(name, h.prefix)
	if !ok || h.address == "" || len(rest) < len(h.address) {
		return false
	}
	for n := range len(h.address) {
		if c := h.address[n]; c != rest[n] && (c != '.' || rest[n] != '-') || rest[n] == '.' {
			return false
		}
	}
	rest = rest[len(h.address):]
	for _, part := range h.domain {
		if rest, ok = strings.CutPrefix(rest, part); !ok {
			return false
		}
	}
	return rest == ""
}
