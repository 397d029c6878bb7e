package ec2query_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/simulator"
)

// handler returns a server that needs no listener.
func handler(t testing.TB) http.Handler {
	t.Helper()
	j, err := journal.Open(patient(t), journal.Config{DataDir: t.TempDir(), MinFreeDisk: -1})
	if err != nil {
		t.Fatal(err)
	}
	backend := sim.New(sim.Config{Speed: 1, Fleet: sim.BuiltinFleet()})
	layer := lifecycle.New(lifecycle.Config{Journal: j, Backend: backend})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- layer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		err := <-ended
		backend.Close()
		if err := errors.Join(err, j.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-layer.Ready():
	case <-patient(t).Done():
		t.Fatal("the service layer does not become ready")
	}
	return ec2query.New(ec2query.Config{Lifecycle: layer, Simulator: simulator.New(layer, backend)})
}

func FuzzRequestsAreAnsweredInXML(f *testing.F) {
	for _, form := range []string{
		"Action=StartInstances&Version=2016-11-15&InstanceId.1=" + documented,
		"Action=StopInstances&Version=2016-11-15&InstanceId.1=i-0a000000000000001&Hibernate=true&Force=true&SkipOsShutdown=false",
		"Action=RebootInstances&Version=2016-11-15&InstanceId.1=i-0a000000000000001&DryRun=true",
		"Action=TerminateInstances&Version=2016-11-15&InstanceId.1=i-0a000000000000005&InstanceId.3=foobar",
		"Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3AName&Filter.1.Value.1=*%3F%5C*&MaxResults=5",
		"Action=DescribeInstanceStatus&Version=2016-11-15&IncludeAllInstances=true&MaxResults=5&NextToken=eA",
		"Action=RunInstances&Version=2016-11-15&ImageId=ami-1&MinCount=1&MaxCount=2&ClientToken=t&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=%00%3C%5D%5D%3E",
		"Action=CreateTags&Version=2016-11-15&ResourceId.1=i-0a000000000000001&Tag.1.Key=k&Tag.1.Value=%EF%BF%BE",
		"Action=DeleteTags&Version=2016-11-15&ResourceId.1=i-0a000000000000001&Tag.1.Key=k",
		"Action=DescribeTags&Version=2016-11-15&Filter.1.Name=key&Filter.1.Value.1=*",
		"Action=ModifyInstanceAttribute&Version=2016-11-15&InstanceId=i-0a000000000000001&InstanceType.Value=t3.nano",
		"Action=DescribeInstanceAttribute&Version=2016-11-15&InstanceId=i-0a000000000000001&Attribute=instanceType",
		"Action=%3Cx%3E&Version=1&a.b.c=%ff",
	} {
		f.Add("", []byte(form), "", "", "")
		f.Add(form, []byte{}, "AWS4-HMAC-SHA256 Credential=ana/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0", "20260101T000000Z", "1")
		var compressed bytes.Buffer
		w := gzip.NewWriter(&compressed)
		_, _ = w.Write([]byte(form))
		_ = w.Close()
		f.Add("X-Amz-Credential=a", compressed.Bytes(), "", "", "gzip")
	}
	server := handler(f)
	f.Fuzz(func(t *testing.T, query string, body []byte, authorization, date, other string) {
		method := http.MethodPost
		if len(body) == 0 {
			method = http.MethodGet
		}
		r := (&http.Request{
			Method: method, URL: &url.URL{Path: "/", RawQuery: query}, Host: "localhost", ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
			Header: http.Header{"Authorization": {authorization}, "X-Amz-Date": {date}, "Content-Encoding": {other}, "Amz-Sdk-Invocation-Id": {other}},
		}).WithContext(t.Context())
		answer := httptest.NewRecorder()
		server.ServeHTTP(answer, r)
		document := answer.Body.Bytes()
		if answer.Code == http.StatusInternalServerError {
			t.Errorf("status %d: %s", answer.Code, document)
		}
		if answer.Header().Get("Content-Length") != strconv.Itoa(len(document)) {
			t.Errorf("%d bytes, said to be %s", len(document), answer.Header().Get("Content-Length"))
		}
		var told struct {
			RequestID string `xml:"requestId"`
			ErrorID   string `xml:"RequestID"`
		}
		if err := xml.Unmarshal(document, &told); err != nil || told.RequestID+told.ErrorID != answer.Header().Get("X-Amzn-Requestid") {
			t.Errorf("%v in %s", err, document)
		}
	})
}
