package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/policy"
)

// banner is what the service prints and logs once it is ready.
type banner struct {
	cfg     serveConfig
	address string
	// ec2Listen is where the EC2 endpoint listens; nil if there is none.
	ec2Listen net.Addr
	// awsRegion is empty unless the backend is EC2.
	awsRegion string
	info      lifecycle.Info
	records   []*journal.Record
	// restored is whether the journal had instances before this process started.
	restored bool
	// faults is whether the fleet file has faults.
	faults bool
}

// role says whether this process executes commands.
func (g *banner) role() string {
	if g.info.IsOwner {
		return "owner"
	}
	return "follower"
}

// logAttrs returns the attributes of the log line.
func (g *banner) logAttrs() []any {
	list := []any{"version", cli.Version(), "address", g.address}
	if len(g.cfg.etcdEndpoints) > 0 {
		list = append(list, "etcd", strings.Join(g.cfg.etcdEndpoints, ","), "prefix", g.cfg.etcdPrefix)
	} else {
		list = append(list, "data_dir", g.cfg.dataDir)
	}
	if g.ec2Listen != nil {
		list = append(list, "ec2_endpoint", "http://"+fromHere(g.ec2Listen), "ec2_listen", g.ec2Listen.String(), "ec2_callers", g.ec2Security())
	}
	if g.awsRegion != "" {
		list = append(list, "region", g.awsRegion, "account", g.account(), "managed", g.managed(), "queue", g.queue())
	}
	return append(list, "backend", g.cfg.backend, "instances", len(g.records), "role", g.role(), "owner", g.info.OwnerAddress)
}

// instances says how many instances there are and where they came from.
func (g *banner) instances() string {
	text := cli.Counted(len(g.records), "instance")
	switch {
	case g.awsRegion != "":
		text += " in " + g.awsRegion
		if account := g.account(); account != "" {
			text += " of the account " + account
		}
	case g.restored && g.cfg.simFleet != "":
		text += fmt.Sprintf(" restored from the journal; the instances of %s are ignored", g.cfg.simFleet)
		if g.faults {
			text += ", its faults are used"
		}
	case g.restored:
		text += " restored from the journal"
	case !g.info.IsOwner:
		// The owner chose the initial fleet.
	case g.cfg.simFleet != "":
		text += " of " + g.cfg.simFleet
	default:
		text += " of the built-in fleet"
	}
	return text
}

// print says where the service listens, what it serves, and what to try next.
func (g *banner) print(w io.Writer) {
	where := g.cfg.dataDir
	if len(g.cfg.etcdEndpoints) > 0 {
		where = fmt.Sprintf("etcd at %s, below %s", strings.Join(g.cfg.etcdEndpoints, ", "), g.cfg.etcdPrefix)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `instanced %s serves gRPC on %s
  backend   %s: %s
  journal   %s
`, cli.Version(), g.address, g.cfg.backend, g.instances(), where)
	if g.awsRegion != "" {
		fmt.Fprintf(&out, "  managed   %s\n  queue     %s\n", g.managed(), g.queue())
	}
	if !g.info.IsOwner {
		owner := "the owner; there is none at the moment"
		if g.info.OwnerAddress != "" {
			owner = g.info.OwnerAddress
		}
		fmt.Fprintf(&out, "  follower  commands go to %s\n", owner)
	}
	fmt.Fprintf(&out, "  security  %s\n", g.security())
	if g.ec2Listen != nil {
		fmt.Fprintf(&out, "  ec2       http://%s; %s; %s\n", fromHere(g.ec2Listen), g.ec2Reach(), g.ec2Security())
	}
	out.WriteString("\nTry:\n")
	program, server, grpcurl := invocation(), "", "-plaintext"
	address := reachable(g.address)
	if address != "127.0.0.1:50051" {
		server = " --server " + address
	}
	if g.cfg.tls.enabled() {
		server += " --tls-ca CA --tls-cert CERT --tls-key KEY"
		grpcurl = "-cacert CA -cert CERT -key KEY"
	}
	example := g.example()
	switch {
	case !g.info.IsOwner, g.awsRegion != "":
		fmt.Fprintf(&out, "  %[1]s describe%[2]s\n  %[1]s watch%[2]s\n", program, server)
	case example == "":
		fmt.Fprintf(&out, "  %s describe%s\n", program, server)
	default:
		fmt.Fprintf(&out, `  %[1]s start %[2]s --wait%[3]s
  %[1]s watch%[3]s
  grpcurl %[5]s -d '{"instance_ids":["%[2]s"]}' %[4]s instanced.v1.InstanceService/StartInstances
`, program, example, server, address, grpcurl)
	}
	if g.ec2Listen != nil {
		fmt.Fprintf(&out, "  %s\n", g.ec2Example())
	}
	_, _ = io.WriteString(w, out.String()) // standard output may be closed; the log says it too
}

// security says how callers are authenticated and what they may do.
func (g *banner) security() string {
	switch {
	case !g.cfg.tls.enabled():
		return "gRPC in plaintext on loopback; callers are not authenticated"
	case g.cfg.policy == policy.AllowAuthenticated:
		return "gRPC with TLS; client certificates say who calls; callers may read, start and stop"
	default:
		return "gRPC with TLS; client certificates say who calls; everything is permitted"
	}
}

// reachable returns an address at which the service can be called: one that stands for all
// addresses of this machine is replaced by localhost.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("localhost", port)
	}
	return address
}

// account returns the account of the instances in EC2, or "" without instances.
func (g *banner) account() string {
	if len(g.records) == 0 {
		return ""
	}
	return g.records[0].Instance.AccountID
}

// managed says which instances of EC2 callers can see.
func (g *banner) managed() string {
	if tags := g.cfg.aws.manage.String(); tags != "" {
		return "instances with " + tags
	}
	return "all instances"
}

// queue says where notices of changes come from.
func (g *banner) queue() string {
	return cmp.Or(g.cfg.aws.queueURL, "none: instances in transition are polled")
}

// example returns an instance that can be started, preferably the documented one, or "".
func (g *banner) example() instance.ID {
	const documented = instance.ID("i-1234567890abcdef0")
	var example instance.ID
	for _, r := range g.records {
		if !startable(r.Instance) {
			continue
		}
		if r.Instance.ID == documented {
			return documented
		}
		if example == "" {
			example = r.Instance.ID
		}
	}
	return example
}

// startable reports whether an instance can be started as far as its record shows; only the
// backend knows about permissions and capacity.
func startable(i *instance.Instance) bool {
	unlimited := i.Simulator != nil && i.Simulator.CPUCredits == "unlimited"
	return i.State == instance.StateStopped && i.RootDeviceType != "instance-store" &&
		(i.Tenancy != "host" || !unlimited)
}

// invocation returns how to run this program in another terminal.
func invocation() string {
	if _, err := exec.LookPath("instanced"); err == nil {
		return "instanced"
	}
	path, err := os.Executable()
	if err != nil || strings.Contains(path, "go-build") {
		return "go run ./cmd/instanced"
	}
	return path
}
