package instance

import "testing"

func TestHostNamesAreMadeFromAddresses(t *testing.T) {
	for _, test := range []struct{ region, private, public string }{
		{"us-east-1", "ip-10-0-0-1.ec2.internal", "ec2-203-0-113-25.compute-1.amazonaws.com"},
		{"eu-central-1", "ip-10-0-0-1.eu-central-1.compute.internal", "ec2-203-0-113-25.eu-central-1.compute.amazonaws.com"},
		{"cn-north-1", "ip-10-0-0-1.cn-north-1.compute.internal", "ec2-203-0-113-25.cn-north-1.compute.amazonaws.com.cn"},
	} {
		i := &Instance{Region: test.region, PrivateIPAddress: "10.0.0.1", PublicIPAddress: "203.0.113.25"}
		if i.UsualPrivateDNSName() != test.private || i.UsualPublicDNSName() != test.public {
			t.Errorf("in %s: %q and %q, want %q and %q", test.region, i.UsualPrivateDNSName(), i.UsualPublicDNSName(), test.private, test.public)
		}
		if i.HasUsualPrivateDNSName() || i.HasUsualPublicDNSName() {
			t.Errorf("in %s: one without names has the usual ones", test.region)
		}
		i.PrivateDNSName, i.PublicDNSName = test.private, test.public
		if !i.HasUsualPrivateDNSName() || !i.HasUsualPublicDNSName() {
			t.Errorf("in %s: they are not the usual ones", test.region)
		}
	}
	if none := (&Instance{Region: "us-east-1"}); none.UsualPrivateDNSName() != "" || none.UsualPublicDNSName() != "" {
		t.Error("there is a name without an address")
	}
}

// FuzzHostNames: a name counts as the usual one exactly if it is.
func FuzzHostNames(f *testing.F) {
	f.Add("us-east-1", "10.0.0.1", "ip-10-0-0-1.ec2.internal")
	f.Add("eu-central-1", "10.0.0.1", "ip-10-0-0-1.eu-central-1.compute.internal")
	f.Add("eu-central-1", "10.0.0.1", "ip-10.0.0.1.eu-central-1.compute.internal")
	f.Add("us-east-1", "203.0.113.25", "ec2-203-0-113-25.compute-1.amazonaws.com")
	f.Add("us-east-1", "203.0.113.25", "ec2-203-0-113-25.compute-1.amazonaws.com.cn")
	f.Add("cn-north-1", "203.0.113.25", "ec2-203-0-113-25.cn-north-1.compute.amazonaws.com.cn")
	f.Add("us-east-1", "10.0.0.1", "i-0123456789abcdef0.ec2.internal")
	f.Add("", "", "ip-.ec2.internal")
	f.Fuzz(func(t *testing.T, region, address, name string) {
		i := &Instance{Region: region, PrivateIPAddress: address, PublicIPAddress: address, PrivateDNSName: name, PublicDNSName: name}
		if got, want := i.HasUsualPrivateDNSName(), name != "" && name == i.UsualPrivateDNSName(); got != want {
			t.Errorf("private: %v, want %v", got, want)
		}
		if got, want := i.HasUsualPublicDNSName(), name != "" && name == i.UsualPublicDNSName(); got != want {
			t.Errorf("public: %v, want %v", got, want)
		}
	})
}
