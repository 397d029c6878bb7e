package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/backend/ec2"
)

func TestWhatEC2HasAgainstUsIsSaid(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAINSTANCED")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:1") // the flag goes before it
	for _, c := range []struct {
		name, code string
		status     int
		want       string
		reached    bool
	}{
		{"no permission", "UnauthorizedOperation", http.StatusForbidden, "EC2 does not let this service describe instances: said so (UnauthorizedOperation); its policy must allow ec2:DescribeInstances", true},
		{"an unknown key", "AuthFailure", http.StatusUnauthorized, "EC2 does not accept this service's credentials: said so (AuthFailure)", true},
		{"a region that is not opted into", "OptInRequired", http.StatusForbidden, "EC2 does not describe instances: said so (OptInRequired)", true},
		{"an outage", "ServiceUnavailable", http.StatusServiceUnavailable, "AWS cannot be reached: ServiceUnavailable: said so", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = fmt.Fprintf(w, "<Response><Errors><Error><Code>%s</Code><Message>said so</Message></Error></Errors><RequestID>r</RequestID></Response>", c.code)
			}))
			defer endpoint.Close()
			log, closeLog := newLogger("text", slog.LevelInfo, t.Output())
			defer closeLog()
			settings, err := loadAWS(t.Context(), awsFlags{region: "us-east-1", endpointURL: endpoint.URL}, log)
			if err != nil {
				t.Fatal(err)
			}
			backend := ec2.New(settings)
			defer backend.Close()
			err = checkDescribe(t.Context(), backend)
			if err == nil || err.Error() != c.want || errors.Is(err, errUnreachable) == c.reached {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestTheFilterOfWhatIsManaged(t *testing.T) {
	var m manageFilter
	for _, tag := range []string{"team=payments", "Name", "team=red", "note=a=b", "empty="} {
		if err := m.Set(tag); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := m.String(), "Name empty= note=a=b team=payments team=red"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, tag := range []string{"", "=x", "team", "Name=x"} {
		if err := m.Set(tag); err == nil || !strings.Contains(err.Error(), "neither KEY=VALUE nor KEY") && !strings.Contains(err.Error(), "without a value") {
			t.Errorf("%q: %v", tag, err)
		}
	}
}
