package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/server/ec2query"
)

// parseEC2Listen accepts an address, or none.
func parseEC2Listen(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	return parseAddress(text, "127.0.0.1:8580")
}

// listenEC2 opens the EC2 endpoint if one is configured. Without credentials it must be on
// loopback.
func listenEC2(cfg serveConfig, log *slog.Logger) (net.Listener, ec2query.Credentials, error) {
	if cfg.ec2Listen == "" {
		return nil, nil, nil
	}
	credentials, err := readCredentials(cfg.ec2Credentials, log)
	if err != nil {
		return nil, nil, err
	}
	if host, _, _ := net.SplitHostPort(cfg.ec2Listen); credentials == nil && !onLoopback(host) {
		return nil, nil, cli.Usagef("--ec2-listen: %q is not on loopback, and callers are not authenticated; give a file of access keys with --ec2-credentials", cfg.ec2Listen)
	}
	lis, err := listenForEC2(cfg, cfg.ec2Listen)
	return lis, credentials, err
}

func listenForEC2(cfg serveConfig, address string) (net.Listener, error) {
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return nil, cfg.errListen(address, "--ec2-listen", err)
	}
	return lis, nil
}

// readCredentials returns nil without a file. It warns about a file that every user of the
// machine can read or change.
func readCredentials(name string, log *slog.Logger) (ec2query.Credentials, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, cli.Usagef("cannot read the credentials file %s: %v", name, innermost(err))
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o006 != 0 {
		log.Warn("the credentials file holds secrets, but every user of this machine can read or change it; run chmod o-rw on it",
			"file", name, "mode", info.Mode().Perm().String())
	}
	credentials, err := ec2query.ParseCredentials(file)
	if err != nil {
		return nil, cli.Usagef("invalid credentials file %s: %v", name, err)
	}
	return credentials, nil
}

// fromHere returns the address at which this machine reaches a listener.
func fromHere(address net.Addr) string {
	if a, ok := address.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port))
	}
	return address.String()
}

// ec2Reach says from where the EC2 endpoint can be reached; it never has TLS.
func (g *banner) ec2Reach() string {
	host, _, _ := net.SplitHostPort(g.ec2Listen.String())
	switch ip := net.ParseIP(host); {
	case ip.IsUnspecified():
		return fmt.Sprintf("in plaintext on all interfaces (%s)", g.ec2Listen)
	case ip.IsLoopback():
		return "in plaintext on loopback"
	}
	return "in plaintext on the network"
}

// ec2Security says how the EC2 endpoint authenticates its callers.
func (g *banner) ec2Security() string {
	if g.cfg.ec2Credentials != "" {
		return "signatures are verified with " + g.cfg.ec2Credentials
	}
	return "callers are not authenticated"
}

// ec2Example is a command to try the EC2 endpoint with.
func (g *banner) ec2Example() string {
	command := "describe-instances"
	if id := g.example(); g.info.IsOwner && g.awsRegion == "" && id != "" {
		command = "start-instances --instance-ids " + string(id)
	}
	signing := " --no-sign-request"
	if g.cfg.ec2Credentials != "" {
		signing = ""
	}
	return fmt.Sprintf("aws ec2 %s --endpoint-url http://%s --region %s%s", command, fromHere(g.ec2Listen), g.region(), signing)
}

// region returns the region of the instances.
func (g *banner) region() string {
	var first instance.Instance
	if len(g.records) > 0 {
		first = *g.records[0].Instance
	}
	return cmp.Or(g.awsRegion, first.Region, "us-east-1")
}
