// Package conformance checks what subscribers saw against what they were promised:
// one function a promise, over recorded streams and calls, whatever was done to the
// server meanwhile.
//
// [Watch] records one stream, [Follow] a sequence that goes on over several by itself,
// such as that of client.Client.Watch; both give a [Recorder], and that a [Connection].
// A subscriber is the list of its connections, each of which went on at the cursor of
// the one before: [All] checks it.
//
// A [Log] is the truth to compare with. [NewLog] makes it of an unfiltered subscriber
// that was there from the beginning, followed or not, across restarts of the server;
// [Log.Agrees] compares it with what [History] reads of the journal by ListEvents, which
// is another way. [Alone] checks what can be seen without a log; [Recorded] and
// [RecordedSnapshot] compare with a history what was recorded with a filter that nobody
// knows.
package conformance
