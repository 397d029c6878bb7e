package sim_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// pages follows the tokens of a query.
func pages(t testing.TB, b *sim.Backend, query instance.DescribeQuery, between func()) [][]instance.ID {
	t.Helper()
	var pages [][]instance.ID
	for {
		page, err := b.Describe(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		var ids []instance.ID
		for _, inst := range page.Instances {
			ids = append(ids, inst.ID)
		}
		pages = append(pages, ids)
		if query.PageToken = page.NextPageToken; query.PageToken == "" {
			return pages
		}
		between()
	}
}

func TestDescribe(t *testing.T) {
	nothing := func() {}
	bubble(t, "ids, once each, without those that do not exist", func(t *testing.T) {
		b := open(t, sim.Config{})
		ids := create(t, b, sim.Spec{Count: 3})
		got := pages(t, b, instance.DescribeQuery{IDs: []instance.ID{ids[2], id, ids[0], ids[2]}}, nothing)
		want := []instance.ID{ids[0], ids[2]}
		slices.Sort(want)
		equal(t, "ids", got[0], want)
	})
	bubble(t, "all, in pages, whatever is created and vanishes meanwhile", func(t *testing.T) {
		b := open(t, sim.Config{})
		ids := slices.Sorted(slices.Values(create(t, b, sim.Spec{Count: 23})))
		got := pages(t, b, instance.DescribeQuery{All: true, PageSize: 10}, nothing)
		if len(got) != 3 || len(got[0]) != 10 || len(got[2]) != 3 {
			t.Fatalf("pages are %v", got)
		}
		equal(t, "ids", slices.Concat(got...), ids)
		got = pages(t, b, instance.DescribeQuery{All: true, PageSize: 5}, func() { create(t, b, sim.Spec{Count: 3}) })
		seen := map[instance.ID]int{}
		for _, id := range slices.Concat(got...) {
			seen[id]++
		}
		for _, id := range ids {
			if seen[id] != 1 {
				t.Fatalf("%s came %d times", id, seen[id])
			}
		}
	})
	bubble(t, "a page that is exactly full is the last", func(t *testing.T) {
		b := open(t, sim.Config{})
		ids := create(t, b, sim.Spec{Count: 10})
		if got := pages(t, b, instance.DescribeQuery{All: true, PageSize: 5}, nothing); len(got) != 2 {
			t.Fatalf("%d pages", len(got))
		}
		if got := pages(t, b, instance.DescribeQuery{IDs: ids, PageSize: 5}, nothing); len(got) != 2 {
			t.Fatalf("%d pages", len(got))
		}
	})
	refusals := []struct {
		name  string
		query instance.DescribeQuery
		code  string
	}{
		{"neither ids nor all", instance.DescribeQuery{}, "InvalidParameterCombination"},
		{"both ids and all", instance.DescribeQuery{All: true, IDs: []instance.ID{id}}, "InvalidParameterCombination"},
		{"a page too small", instance.DescribeQuery{All: true, PageSize: 4}, "InvalidParameterValue"},
		{"a page too large", instance.DescribeQuery{All: true, PageSize: 1001}, "InvalidParameterValue"},
		{"a token that is none", instance.DescribeQuery{All: true, PageToken: "garbage"}, "InvalidPaginationToken"},
	}
	for _, test := range refusals {
		bubble(t, "refuses "+test.name, func(t *testing.T) {
			b := open(t, sim.Config{})
			_, err := b.Describe(t.Context(), test.query)
			if e := asError(t, err); e.Kind != instance.KindInvalid || e.Code != test.code {
				t.Fatalf("error is %v", e)
			}
		})
	}
	bubble(t, "refuses the token of another query", func(t *testing.T) {
		b := open(t, sim.Config{})
		ids := create(t, b, sim.Spec{Count: 10})
		page, err := b.Describe(t.Context(), instance.DescribeQuery{All: true, PageSize: 5})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Describe(t.Context(), instance.DescribeQuery{IDs: ids, PageSize: 5, PageToken: page.NextPageToken})
		refuses(t, err, instance.KindInvalid, "InvalidPaginationToken", "The page token belongs to another query.")
	})
	bubble(t, "images stay as they were handed out", func(t *testing.T) {
		b := open(t, sim.Config{})
		create(t, b, sim.Spec{ID: id})
		before := get(t, b, id)
		copied := before.Clone()
		must(t, b, instance.VerbStart, id)
		if !before.Equal(copied) {
			t.Fatal("an image was modified")
		}
	})
}

func FuzzPageToken(f *testing.F) {
	b := open(f, sim.Config{Fleet: []sim.Spec{{Count: 20}}})
	page, err := b.Describe(f.Context(), instance.DescribeQuery{All: true, PageSize: 5})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "garbage", "AAAAAAAAAAA", page.NextPageToken, page.NextPageToken[:14], page.NextPageToken + "="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		page, err := b.Describe(t.Context(), instance.DescribeQuery{All: true, PageSize: 5, PageToken: token})
		if err != nil {
			if e := asError(t, err); e.Kind != instance.KindInvalid || e.Code != "InvalidPaginationToken" {
				t.Fatalf("error is %v", e)
			}
			return
		}
		if len(page.Instances) > 5 {
			t.Fatalf("%d instances on a page of 5", len(page.Instances))
		}
	})
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Faults: []sim.Fault{{Kind: sim.NoticeLate, Delay: 1, Probability: 0.5}, {Kind: sim.DescribeLag, Delay: 1e9}}})
		ids := create(t, b, sim.Spec{Count: 50})
		heard := listen(t, b)
		verbs := []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate}
		for g := range 8 {
			go func() {
				for i := range 200 {
					_, _ = b.Execute(t.Context(), instance.Command{Verb: verbs[(i+g)%len(verbs)], IDs: []instance.ID{ids[(i*7+g)%len(ids)]}})
					_, _ = b.Describe(t.Context(), instance.DescribeQuery{All: true, PageSize: 10})
					b.Faults()
				}
			}()
		}
		synctest.Wait()
		if err := b.Reset(); err == nil && len(all(t, b)) != 0 {
			t.Error("instances are left after a reset to an empty fleet")
		}
		heard()
	})
}
