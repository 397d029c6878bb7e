package main

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// maxQueuedLogBytes bounds the log lines that wait in memory to be written.
	maxQueuedLogBytes = 1 << 20
	// logFlushTimeout is how long the process waits at its end for the log to be written.
	logFlushTimeout = time.Second
)

// logQueue writes the lines of the log on a goroutine of its own, so that a slow or blocked
// destination never blocks a caller. Lines beyond maxQueuedLogBytes are dropped and counted, and so
// are those that the destination rejects, as when its disk is full. It is safe for concurrent use.
type logQueue struct {
	destination io.Writer
	// report writes how many lines were dropped straight to the destination, and why: nil if they
	// were not read fast enough.
	report func(lines int, why error) error

	mu     sync.Mutex
	queued []byte
	// dropped is how many lines were dropped since lines were last taken from the queue.
	dropped int
	closed  bool

	// lost is how many lines were dropped that the destination has not been told of yet, and why;
	// both are only for run.
	lost    int
	lostFor error

	wake chan struct{}
	done chan struct{}
}

// newLogQueue returns a queue that writes until it is closed. Dropped lines are reported
// behind those that were queued before them.
func newLogQueue(destination io.Writer, report func(lines int, why error) error) *logQueue {
	q := &logQueue{destination: destination, report: report, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Write queues a line, or drops it. It never blocks and never fails.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	// Once a line is dropped all are, until the number of dropped lines has been reported.
	if q.dropped > 0 || q.closed || len(q.queued)+len(line) > maxQueuedLogBytes {
		q.dropped++
	} else {
		q.queued = append(q.queued, line...)
	}
	q.mu.Unlock()
	q.signal()
	return len(line), nil
}

func (q *logQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *logQueue) run() {
	defer close(q.done)
	var spare []byte
	for range q.wake {
		for {
			q.mu.Lock()
			lines, dropped, closed := q.queued, q.dropped, q.closed
			q.queued, q.dropped = spare[:0], 0
			q.mu.Unlock()
			spare = lines // in use until it is written; the next swap comes after that
			if len(lines) > 0 || dropped > 0 {
				q.write(lines, dropped)
				continue
			}
			if closed {
				q.reportLost()
				return
			}
			break
		}
	}
}

// write writes lines, and how many were dropped before and behind them.
func (q *logQueue) write(lines []byte, dropped int) {
	q.reportLost()
	if q.lost > 0 { // still, and these would be lost as well
		q.lost += bytes.Count(lines, newline) + dropped
		return
	}
	n, err := q.destination.Write(lines)
	if err != nil {
		q.lost, q.lostFor = bytes.Count(lines[n:], newline)+dropped, err
		return
	}
	q.lost, q.lostFor = dropped, nil
	q.reportLost()
}

// reportLost reports the lines that were lost, if the destination takes that.
func (q *logQueue) reportLost() {
	if q.lost > 0 && q.report(q.lost, q.lostFor) == nil {
		q.lost = 0
	}
}

// Close writes what is queued, and gives up after logFlushTimeout. Lines that come later
// are lost.
func (q *logQueue) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	select {
	case <-q.done:
	case <-time.After(logFlushTimeout):
	}
}

var newline = []byte("\n")

// wholeLines writes lines to a destination that may take a part of what is written only, and
// ends a line that was begun before it begins the next.
type wholeLines struct {
	destination io.Writer
	torn        bool
}

// Write implements [io.Writer].
func (w *wholeLines) Write(lines []byte) (int, error) {
	if w.torn {
		if _, err := w.destination.Write(newline); err != nil {
			return 0, err
		}
		w.torn = false
	}
	n, err := w.destination.Write(lines)
	if n > 0 {
		w.torn = lines[n-1] != '\n'
	}
	return n, err
}
