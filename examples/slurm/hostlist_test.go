package main

import (
	"slices"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	for hostlist, want := range map[string]string{
		"node1":                       "node1",
		"node[1-3]":                   "node1 node2 node3",
		"node[01-03,7]":               "node01 node02 node03 node7",
		"node[08-11]":                 "node08 node09 node10 node11",
		"rack[1-2]-gpu,login":         "rack1-gpu rack2-gpu login",
		"a,a,a[1,1]":                  "a a1",
		"a[1-2],b[3],c":               "a1 a2 b3 c",
		"ip-10-0-0-7.cluster.local":   "ip-10-0-0-7.cluster.local",
		"[1-2]":                       "1 2",
		"node[4294967294-4294967295]": "node4294967294 node4294967295",
	} {
		if got, err := expand(hostlist); err != nil || !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %q, %v", hostlist, got, err)
		}
	}
	for _, hostlist := range []string{
		"", ",", "a,", ",a", "a[1", "a]", "a[]", "a[1-]", "a[-1]", "a[2-1]", "a[x]", "a[1-2][3-4]", "a b",
		"a[0-1000]", "a[1-600],b[1-600]", "a[0-18446744073709551615]", "a[1-2]]",
	} {
		if got, err := expand(hostlist); err == nil {
			t.Errorf("%q: %q", hostlist, got)
		}
	}
}
