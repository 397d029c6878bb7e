package journal

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// keys names the keys in etcd, all below one prefix.
//
//	meta                      which log this is
//	control/generations       the stretches of the log
//	control/owner             who may write
//	control/head              the end of the log
//	control/checkpoint        how far the instance keys reach
//	log/<seq>                 the log
//	instances/<id>            the checkpoint
//	tokens/<created>/<key>    client tokens, by age
type keys struct {
	prefix                                         string // with its last slash
	meta, control, epochs, owner, head, checkpoint string
	log, instances, tokens                         string
}

// seqDigits is the width of a sequence number in a key: enough for any uint64, so
// that the order of keys is that of numbers.
const seqDigits = 20

func newKeys(prefix string) keys {
	p := strings.TrimRight(prefix, "/") + "/"
	return keys{
		prefix:     p,
		meta:       p + "meta",
		control:    p + "control/",
		epochs:     p + "control/generations",
		owner:      p + "control/owner",
		head:       p + "control/head",
		checkpoint: p + "control/checkpoint",
		log:        p + "log/",
		instances:  p + "instances/",
		tokens:     p + "tokens/",
	}
}

// logKey returns the key of a batch.
func (k *keys) logKey(seq uint64) string {
	return fmt.Sprintf("%s%0*d", k.log, seqDigits, seq)
}

// seq returns the sequence number in a key of the log.
func (k *keys) seq(key []byte) (uint64, error) {
	digits, ok := strings.CutPrefix(string(key), k.log)
	if !ok || len(digits) != seqDigits {
		return 0, fmt.Errorf("%q is not a key of the log", key)
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a key of the log", key)
	}
	return seq, nil
}

// tokenKey returns the key of a client token. It begins with the time, so that
// what has expired is one range, and an index of ages needs no values.
func (k *keys) tokenKey(created time.Time, token string) string {
	return k.tokensBefore(created) + "/" + token
}

// tokensBefore returns the end of the range of tokens created before a time.
func (k *keys) tokensBefore(created time.Time) string {
	return fmt.Sprintf("%s%016x", k.tokens, max(created.UnixNano(), 0))
}

// token returns the client token in a key, and when it was created.
func (k *keys) token(key []byte) (token string, created time.Time, err error) {
	rest, _ := strings.CutPrefix(string(key), k.tokens)
	hex, token, ok := strings.Cut(rest, "/")
	ns, err := strconv.ParseInt(hex, 16, 64)
	if !ok || err != nil {
		return "", time.Time{}, fmt.Errorf("%q is not a key of a client token", key)
	}
	return token, time.Unix(0, ns).UTC(), nil
}
