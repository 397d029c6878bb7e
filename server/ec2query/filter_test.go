package ec2query

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func TestGlobs(t *testing.T) {
	for _, test := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true},
		{"*", "anything", true},
		{"t3.*", "t3.micro", true},
		{"t3.*", "t3", false},
		{"*.micro", "t3.micro", true},
		{"*i*r*", "micro", true},
		{"*i*x*", "micro", false},
		// As EC2 documents it: one character, or none.
		{"prod?", "prod", true},
		{"prod?", "prods", true},
		{"prod?", "production", false},
		{"??", "ab", true},
		{"??", "abc", false},
		{"?b", "b", true},
		{"a?c", "aäc", true},
		{`\*amazon\?\\`, `*amazon?\`, true},
		{`\*amazon\?\\`, `xamazonx\`, false},
		{`a\`, `a\`, true},
		{`\a*`, "abc", true},
		{"*\n*", "a\nb", true},
		{"[a-z]*", "abc", false},
		{"A*", "abc", false},
		{strings.Repeat("?a", 100) + "*", strings.Repeat("a", 300), true},
		{strings.Repeat("*a", 120) + "b", strings.Repeat("a", 255), false},
	} {
		pattern, text := parseGlob(test.pattern)
		got := text == test.text
		if pattern != nil {
			got, _ = pattern.match(test.text)
		}
		if got != test.want {
			t.Errorf("%q matches %q: %v, want %v", test.pattern, test.text, got, test.want)
		}
	}
}

// standsFor says what a pattern is by its definition, one character at a time.
func standsFor(pattern, text []rune) bool {
	// at holds whether the pattern up to a token stands for the text that was read.
	at := make([]bool, len(pattern)+1)
	at[0] = true
	skip := func() {
		for n, token := range pattern {
			if (token == '*' || token == '?') && at[n] {
				at[n+1] = true
			}
		}
	}
	skip()
	for _, char := range text {
		next := make([]bool, len(at))
		for n, token := range pattern {
			switch {
			case !at[n]:
			case token == '*':
				next[n] = true
			case token == '?', token == char:
				next[n+1] = true
			}
		}
		at = next
		skip()
	}
	return at[len(pattern)]
}

func TestGlobsMatchAsTheyAreDefined(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	text := func(letters string, length int) string {
		b := make([]byte, draw.IntN(length))
		for n := range b {
			b[n] = letters[draw.IntN(len(letters))]
		}
		return string(b)
	}
	matched := 0
	for range 30_000 {
		length := []int{6, 20, 70, 140, maxFilterLength}[draw.IntN(5)]
		value, have := text([]string{"ab*?", "a?", "a*", "aaaaaab?*"}[draw.IntN(4)], length), text([]string{"ab", "a", "aaaaab"}[draw.IntN(3)], length)
		pattern, _ := parseGlob(value)
		if pattern == nil {
			continue
		}
		got, _ := pattern.match(have)
		if want := standsFor([]rune(value), []rune(have)); got != want {
			t.Fatalf("%q matches %q: %v, want %v", value, have, got, want)
		}
		if got {
			matched++
		}
	}
	if matched < 1000 {
		t.Errorf("only %d matched: nothing is shown", matched)
	}
}

func TestAGlobIsMatchedInStepsProportionalToTheText(t *testing.T) {
	for _, value := range []string{
		"*a", strings.Repeat("*?", 100) + "b", strings.Repeat("*a", 120) + "b", strings.Repeat("?a", 120) + "b", strings.Repeat("?", 200) + "*b",
	} {
		pattern, _ := parseGlob(value)
		for _, length := range []int{10, 100, 1000, 10_000} {
			_, steps := pattern.match(strings.Repeat("a", length))
			if maxSteps := length + 1; steps > maxSteps {
				t.Errorf("%q is matched with %d characters in %d steps, want at most %d", value, length, steps, maxSteps)
			}
		}
	}
}

func FuzzGlobsMatchWhatTheyAreMadeOf(f *testing.F) {
	f.Add(`web-\*?`, "tail")
	f.Fuzz(func(t *testing.T, text, tail string) {
		if !validText(text) || !validText(tail) {
			return
		}
		quoted := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`).Replace(text)
		if pattern, plain := parseGlob(quoted); pattern != nil || plain != text {
			t.Errorf("%q quoted as %q is %v, %q", text, quoted, pattern, plain)
		}
		pattern, _ := parseGlob(quoted + "*")
		if matches, _ := pattern.match(text + tail); !matches {
			t.Errorf("%q does not begin %q", quoted+"*", text+tail)
		}
	})
}

func validText(s string) bool { return strings.ToValidUTF8(s, "") == s && len(s) <= maxFilterLength/2 }

// taggedInstance returns an instance with tags of so many characters.
func taggedInstance(n, tags, length int) *instance.Instance {
	i := &instance.Instance{ID: instance.ID(fmt.Sprintf("i-%017x", n)), Tags: make(map[string]string)}
	for k := range tags {
		i.Tags[fmt.Sprint("key", k)] = strings.Repeat("a", length)
	}
	return i
}

func TestFiltersThatTakeTooLongAreRefused(t *testing.T) {
	expensive := func() *filter {
		var form strings.Builder
		form.WriteString("Filter.1.Name=tag%3Akey0")
		for n := range maxFilterValues {
			fmt.Fprintf(&form, "&Filter.1.Value.%d=%s%%3F%d", n+1, strings.Repeat("*a%3Fa", 60), n)
		}
		return parsed(t, form.String()).filter(instanceFilters)
	}
	i := taggedInstance(1, 1, 256)
	f, scanned := expensive(), 0
	for ; f.err() == nil && scanned < 100_000; scanned++ {
		if f.match(i) {
			t.Fatal("it matches")
		}
	}
	wantCode(t, f.err(), "FilterLimitExceeded", "too many comparisons")
	if scanned < 50 {
		t.Errorf("it is over after %d instances", scanned)
	}
	// From then on an instance costs nothing, and one value of one is the most that it
	// took too many.
	spent := f.steps
	if f.match(i) || f.steps != spent || spent > maxFilterSteps+2000 {
		t.Errorf("%d steps, then %d", spent, f.steps)
	}

	cheap := parsed(t, "Filter.1.Name=tag%3Akey0&Filter.1.Value.1=*web*&Filter.1.Value.2=db-%3F").filter(instanceFilters)
	for range 100_000 {
		cheap.match(taggedInstance(1, 1, 20))
	}
	if err := cheap.err(); err != nil {
		t.Errorf("a filter for a name among 100,000 instances: %v", err)
	}
}

func TestABigScanLetsOthersHaveTheProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f := parsed(t, "Filter.1.Name=tag%3Akey0&Filter.1.Value.1=*b").filter(instanceFilters)
	i := taggedInstance(1, 1, 256)
	f.match(i)
	other := make(chan struct{})
	go close(other)
	for f.steps < yieldInterval { // a fraction of the time after which the runtime would interrupt it
		f.match(i)
	}
	select {
	case <-other:
	default:
		t.Error("a goroutine that is ready has not run")
	}
}

func BenchmarkFilterOfAllSteps(b *testing.B) {
	for _, value := range []string{"*a%3Fb", strings.Repeat("*a%3Fa", 60) + "b"} {
		b.Run(fmt.Sprint(len(value)), func(b *testing.B) {
			i := taggedInstance(1, 1, 256)
			steps := 0
			for b.Loop() {
				f := parsed(b, "Filter.1.Name=tag%3Akey0&Filter.1.Value.1="+value).filter(instanceFilters)
				for f.err() == nil {
					f.match(i)
				}
				steps += f.steps
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(steps), "ns/step")
		})
	}
}
