// Package codec turns changes, and what is known of instances, into the bytes that the journal
// stores, and back. The bytes are messages of instanced.storage.v1, encoded by hand: one pass,
// no allocation, straight from the types of package instance. Tests compare them with the
// generated code, and with bytes that earlier versions wrote.
//
// Begin reading in fields.go. Its table lists the fields of an instance, and a new field is
// added there and nowhere else in this package: encode.go, decode.go, Diff and Patch follow
// it. A change is stored as a step: the instance after it in full, and of the instance before
// it only the fields with another value (Diff), which Patch completes on reading. wire.go reads
// and writes single values, compress.go packs the changes of a large batch, and ids.go is a
// short form of instance ids for client tokens.
//
// What has been written stays readable for ever. Readers skip field numbers that they do not
// know, so an older version reads what a newer one wrote as long as the journal's format (see
// dir.go of package journal) is the same.
//
// Functions named Append add to the slice that they are given, as append does; they retain
// nothing. Decoders return errors for malformed input and never panic; the strings that one
// call returns share memory. All functions are safe for concurrent use.
package codec
