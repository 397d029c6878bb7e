package instance

import (
	"fmt"
	"testing"
)

// BenchmarkFilter is what a subscriber's filter costs for each event, which is matched
// twice: before and after.
func BenchmarkFilter(b *testing.B) {
	many := func(form string) []string {
		values := make([]string, 950)
		for i := range values {
			values[i] = fmt.Sprintf(form, i)
		}
		return values
	}
	var ids []ID
	for _, s := range many("i-%017x") {
		ids = append(ids, ID(s))
	}
	keys := map[string][]string{}
	tags := map[string]string{}
	for i := range 50 {
		key := fmt.Sprintf("key-%d", i)
		keys[key], tags[key] = nil, "value"
	}
	for name, f := range map[string]*Filter{
		"one id":       {IDs: ids[475:476]},
		"950 ids":      {IDs: ids},
		"950 values":   {Tags: map[string][]string{"team": many("team-%017x")}},
		"all together": {IDs: ids, Tags: keys},
	} {
		i := &Instance{ID: ids[475], Tags: map[string]string{"team": fmt.Sprintf("team-%017x", 475)}}
		if name == "all together" {
			i.Tags = tags
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !f.Match(i) {
					b.Fatal("it does not match")
				}
			}
		})
		other := &Instance{ID: "i-ffffffffffffffff0", Tags: map[string]string{"team": "another"}}
		b.Run(name+", another instance", func(b *testing.B) {
			for b.Loop() {
				if f.Match(other) {
					b.Fatal("it matches")
				}
			}
		})
	}
}
