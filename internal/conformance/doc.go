// Package conformance checks recorded streams and calls against the guarantees that
// subscribers are given: one function per guarantee. The guarantees hold whatever was
// done to the server meanwhile.
//
// [Watch] records one stream. [Follow] records a sequence that resumes by itself, such as
// client.Client.Watch. Both return a [Recorder], which yields a [Connection]. A subscriber
// is a list of connections, each resumed at the cursor of the previous one; [All] checks it.
//
// A [Log] is the reference to compare with. [NewLog] builds it from an unfiltered
// subscriber that was connected from the beginning, across restarts of the server.
// [Log.Agrees] compares it with the events that [History] reads through ListEvents, an
// independent path. [Alone] checks what needs no log. [Recorded] and [RecordedSnapshot]
// compare a connection whose filter is unknown with a history.
package conformance
