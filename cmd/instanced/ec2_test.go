package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestACredentialsFileThatOthersCanReadIsWarnedOf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys.json")
	content := `{"credentials": [{"access_key_id": "AKIA", "secret_access_key": "topsecret", "principal": "alice"}]}`
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o400: false, 0o644: true, 0o604: true, 0o602: true} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		credentials, err := readCredentials(name, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || len(credentials) != 1 {
			t.Fatalf("%v: %v", mode, err)
		}
		said := log.String()
		if got := strings.Contains(said, "level=WARN") && strings.Contains(said, name) && strings.Contains(said, "chmod o-rw"); got != warned || strings.Contains(said, "topsecret") {
			t.Errorf("%v: warned %v: %s", mode, got, said)
		}
	}
}
