package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	// How long the last lines of progress may lag behind the outcome.
	progressGrace = time.Second
	// With more instances than this, progress is one line with counts, unless --verbose is given.
	maxProgressLines = 20
	barWidth         = 24
)

// waitOptions say how --wait shows its progress.
type waitOptions struct {
	// began is when the command started; the timeout counts from then.
	began   time.Time
	verbose bool
}

// await waits for the instances of a command's response to reach a state, shows their
// progress, and fails for each that does not reach it.
func (t *Terminal) await(ctx context.Context, c *client.Client, got *answer, wanted string, opts waitOptions) error {
	state, err := parseState(wanted)
	if err != nil {
		return err
	}
	req := &instancedv1.WaitInstancesRequest{
		States: []instancedv1.InstanceStateName{state}, AfterCursor: got.cursor,
		Timeout: durationpb.New(max(time.Until(opts.began.Add(cmp.Or(t.Timeout, defaultWait))), time.Millisecond)),
	}
	t.away.expected.Store(true)
	for _, change := range got.changes {
		req.InstanceIds = append(req.InstanceIds, change.GetInstanceId())
	}
	waited := &instancedv1.WaitInstancesResponse{}
	switch {
	case len(req.GetInstanceIds()) == 0:
	case t.JSON():
		waited, err = c.Wait(ctx, req)
	default:
		waited, err = t.waitAndShow(ctx, c, req, t.newProgress(got, state, opts))
	}
	if err != nil {
		return err
	}
	return ending(t.printAwaited(got, waited, opts.verbose), refusals(got), unreached(waited.GetResults()))
}

// waitAndShow waits and shows the changes on the way.
func (t *Terminal) waitAndShow(ctx context.Context, c *client.Client, req *instancedv1.WaitInstancesRequest, p *progress) (*instancedv1.WaitInstancesResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type outcome struct {
		waited *instancedv1.WaitInstancesResponse
		err    error
	}
	outcomes := make(chan outcome, 1)
	go func() {
		waited, err := c.Wait(ctx, req)
		outcomes <- outcome{waited, err}
	}()
	events := make(chan *instancedv1.Event)
	go func() {
		defer close(events)
		follow(ctx, c, req, events)
	}()

	defer p.stop()
	var end outcome
	var late <-chan time.Time
	for {
		select {
		case event, ok := <-events:
			if !ok {
				// Without the watch there are no lines, but the wait still returns the outcome.
				events = nil
				continue
			}
			p.print(event)
		case end = <-outcomes:
			late = time.After(progressGrace)
		case <-late:
			return end.waited, end.err
		case <-p.ticks:
			p.tick()
		}
		if late != nil && (end.err != nil || events == nil || p.shown(end.waited)) {
			return end.waited, end.err
		}
	}
}

// follow passes on the changes of the awaited instances.
func follow(ctx context.Context, c *client.Client, req *instancedv1.WaitInstancesRequest, events chan<- *instancedv1.Event) {
	for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{
		AfterCursor: req.GetAfterCursor(),
		Filter:      &instancedv1.InstanceFilter{InstanceIds: req.GetInstanceIds()},
	}) {
		if err != nil {
			return
		}
		for _, event := range msg.GetEvents().GetEvents() {
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	}
}

// progress prints the progress of instances.
type progress struct {
	t     *Terminal
	began time.Time
	// seen has the states of each instance that were printed.
	seen map[string]map[instancedv1.InstanceStateName]bool
	// now is the state of each instance; counts is the number of instances in each state.
	now    map[string]instancedv1.InstanceStateName
	counts map[instancedv1.InstanceStateName]int
	wanted instancedv1.InstanceStateName
	// lines is whether each change is printed on its own line.
	lines bool
	// ticks is nil unless standard output is a terminal, where a line can be overwritten.
	ticks  <-chan time.Time
	ticker *time.Ticker
}

func (t *Terminal) newProgress(got *answer, wanted instancedv1.InstanceStateName, opts waitOptions) *progress {
	p := &progress{
		t: t, began: opts.began, wanted: wanted,
		seen:   make(map[string]map[instancedv1.InstanceStateName]bool),
		now:    make(map[string]instancedv1.InstanceStateName),
		counts: make(map[instancedv1.InstanceStateName]int),
		lines:  (opts.verbose || len(got.changes) <= maxProgressLines) && !t.idsOnly,
	}
	for _, change := range got.changes {
		p.note(change.GetInstanceId(), change.GetCurrentState())
	}
	if isTerminal(t.Stdout) && !t.idsOnly {
		p.ticker = time.NewTicker(100 * time.Millisecond)
		p.ticks = p.ticker.C
	}
	return p
}

func (p *progress) note(id string, state *instancedv1.InstanceState) {
	if p.seen[id] == nil {
		p.seen[id] = make(map[instancedv1.InstanceStateName]bool)
	}
	p.seen[id][state.GetName()] = true
	if before, known := p.now[id]; known {
		p.counts[before]--
	}
	p.now[id] = state.GetName()
	p.counts[state.GetName()]++
}

func (p *progress) print(event *instancedv1.Event) {
	p.note(event.GetInstance().GetInstanceId(), event.GetInstance().GetState())
	if !p.lines {
		return
	}
	p.clear()
	line := fmt.Sprintf("%7s  %s  %-24s  %s", elapsedText(time.Since(p.began)),
		event.GetInstance().GetInstanceId(), changeText(event), causeText(event.GetCause()))
	if reason := event.GetInstance().GetStateReason().GetMessage(); reason != "" {
		line += "  " + reason
	}
	fmt.Fprintln(p.t.Stdout, line)
}

// tick shows the elapsed time.
func (p *progress) tick() {
	p.clear()
	line := fmt.Sprintf("%7s  waiting", elapsedText(time.Since(p.began)))
	if !p.lines {
		line = fmt.Sprintf("%7s  %s", elapsedText(time.Since(p.began)), p.bar())
	}
	if width := p.t.width(); width > 1 {
		line = cut(line, width-1)
	}
	fmt.Fprint(p.t.Stdout, line)
}

// bar shows how many instances are in which state, such as
// "[######......] 512 of 1000 running, 488 pending".
func (p *progress) bar() string {
	done, all := p.counts[p.wanted], len(p.now)
	filled := barWidth * done / max(all, 1)
	var text strings.Builder
	fmt.Fprintf(&text, "[%s%s] %d of %d %s", strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), done, all,
		stateName(&instancedv1.InstanceState{Name: p.wanted}))
	for _, word := range stateWords() {
		state, err := parseState(word)
		if n := p.counts[state]; err == nil && state != p.wanted && n > 0 {
			fmt.Fprintf(&text, ", %d %s", n, word)
		}
	}
	return text.String()
}

// clear removes the line that tick wrote.
func (p *progress) clear() {
	if p.ticker != nil {
		fmt.Fprint(p.t.Stdout, "\r\x1b[K")
	}
}

func (p *progress) stop() {
	p.clear()
	if !p.lines && !p.t.idsOnly {
		fmt.Fprintf(p.t.Stdout, "%7s  %s\n", elapsedText(time.Since(p.began)), p.bar())
	}
	if p.ticker != nil {
		p.ticker.Stop()
	}
}

// shown reports whether the lines so far show the outcome.
func (p *progress) shown(waited *instancedv1.WaitInstancesResponse) bool {
	for _, r := range waited.GetResults() {
		state := r.GetInstance().GetState().GetName()
		if r.GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
			state = r.GetReachedState().GetName()
		}
		if !p.seen[r.GetInstanceId()][state] {
			return false
		}
	}
	return true
}

// printAwaited prints the outcome of a command and its wait.
func (t *Terminal) printAwaited(got *answer, waited *instancedv1.WaitInstancesResponse, verbose bool) error {
	switch {
	case t.JSON():
		return t.printAwaitedJSON(got, waited)
	case len(got.changes) > maxProgressLines && !verbose && !t.idsOnly:
		return nil // the last line of progress shows it
	}
	for _, r := range waited.GetResults() {
		if r.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
			continue
		}
		if t.idsOnly {
			if _, err := fmt.Fprintln(t.Stdout, r.GetInstanceId()); err != nil {
				return err
			}
			continue
		}
		line := fmt.Sprintf("%s is %s", r.GetInstanceId(), t.Coloured(stateName(r.GetReachedState())))
		if ip := r.GetInstance().GetPublicIpAddress(); ip != "" {
			line += " at " + ip
		}
		if _, err := fmt.Fprintln(t.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}

func (t *Terminal) printAwaitedJSON(got *answer, waited *instancedv1.WaitInstancesResponse) error {
	var doc struct {
		Answer json.RawMessage `json:"answer"`
		Wait   json.RawMessage `json:"wait"`
	}
	var err error
	if doc.Answer, err = document(got.message); err != nil {
		return err
	}
	if doc.Wait, err = document(waited); err != nil {
		return err
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return t.PrintRaw(raw)
}
