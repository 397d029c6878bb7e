// Package ec2 is the backend that carries commands out on real EC2, and the only package
// that knows EC2's API.
//
// What many callers want at once goes out in few calls. A desk for each verb gathers
// those who wait, as EC2's token buckets, mirrored here, and a fair share for every
// principal allow; a round sends a batch, and goes on by what EC2 answers until every
// caller has the outcome that it would have had alone. EC2's own retries are the round's:
// the SDK sends each request once.
package ec2
