package main

import (
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
// destination never blocks a caller. Lines beyond maxQueuedLogBytes are dropped and counted. It is
// safe for concurrent use.
type logQueue struct {
	destination io.Writer
	// dropped reports lines that were dropped, straight to the destination.
	dropped func(lines int)

	mu     sync.Mutex
	queued []byte
	// lines is how many lines were dropped since the destination was last told.
	lines  int
	closed bool

	wake chan struct{}
	done chan struct{}
}

// newLogQueue returns a queue that writes until it is closed. Dropped lines are reported
// behind those that were queued before them.
func newLogQueue(destination io.Writer, dropped func(lines int)) *logQueue {
	q := &logQueue{destination: destination, dropped: dropped, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Write queues a line, or drops it. It never blocks and never fails.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	// Once a line is dropped all are, until the number of dropped lines has been reported.
	if q.lines > 0 || q.closed || len(q.queued)+len(line) > maxQueuedLogBytes {
		q.lines++
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
			lines, dropped, closed := q.queued, q.lines, q.closed
			q.queued, q.lines = spare[:0], 0
			q.mu.Unlock()
			spare = lines // in use until it is written; the next swap comes after that
			if len(lines) == 0 && dropped == 0 {
				if closed {
					return
				}
				break
			}
			_, _ = q.destination.Write(lines) // there is nowhere to report that the log cannot be written
			if dropped > 0 {
				q.dropped(dropped)
			}
		}
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
