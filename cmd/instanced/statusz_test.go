package main

import (
	"maps"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func TestStatuszShowsWhoOwnsWhoLagsAndWhatWasSlow(t *testing.T) {
	t.Parallel()
	flags, address := withMetrics(t)
	s := runService(t, flags...)
	ctx := patient(t)

	// A subscriber with a name of its own that does not read, while large changes are made.
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	named := metadata.AppendToOutgoingContext(ctx, "instanced-principal", "<b>sleepy</b>")
	watching, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(named, &instancedv1.WatchInstancesRequest{FromNow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watching.Recv(); err != nil {
		t.Fatal(err)
	}
	page, err := s.instances().DescribeInstances(named, &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	simulator := instancedv1.NewSimulatorServiceClient(s.conn())
	lagging := regexp.MustCompile(`(?m)^<b>sleepy</b> +\w+ +\S+ +([0-9]+) `)
	text := ""
	for i := range 200 {
		tags := make(map[string]string)
		for n := range 40 {
			tags["tag-"+strconv.Itoa(n)] = strings.Repeat(strconv.Itoa(i%10), 200)
		}
		if _, err := simulator.ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{
			{InstanceIds: []string{page.GetInstances()[0].GetInstanceId()}, SetTags: maps.Clone(tags)},
		}}); err != nil {
			t.Fatal(err)
		}
		_, text = probe(address, "/statusz?format=text")
		if found := lagging.FindStringSubmatch(text); found != nil && found[1] != "0" && found[1] != "1" {
			break
		}
	}
	wantLines(t, text,
		`state +serving`, `backend +simulator`, `log level +info`, `owner +`+regexp.QuoteMeta(s.address)+` \(this process\)`, `term +[0-9a-f]+`,
		`lease +until this process ends`, `None here: .*`, `# Watches: the 1 of 1 that lag most`, `<b>sleepy</b> +\w+ +\S+ +[1-9][0-9]* .*`,
		`instanced.v1.SimulatorService/ChangeInstances +anonymous .* OK .*`, `history +[0-9.]+ MiB of 1024.0 MiB`, `watches and waits +1 +[0-9]+`)
	if _, html := probe(address, "/statusz"); !strings.Contains(html, "&lt;b&gt;sleepy&lt;/b&gt;") || strings.Contains(html, "<b>") {
		t.Errorf("the page does not escape the principal:\n%s", html)
	}
}

func TestStatuszShowsTheTokenBuckets(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, "")
	flags, address := withMetrics(t)
	fronting(t, "http://"+endpoint, flags...)
	_, text := probe(address, "/statusz?format=text")
	wantLines(t, text, `backend +ec2`, `bucket +level +capacity +refill a second +instances waiting`, `requests of StartInstances +[0-9.]+ +[0-9]+ +[0-9.]+ +0`)
}
