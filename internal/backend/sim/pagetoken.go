package sim

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"

	"github.com/instanced/instanced/internal/instance"
)

// A page token is the fingerprint of its query, 8 bytes, and the last id of the
// page, in base64.

func pageToken(query instance.DescribeQuery, last instance.ID) string {
	raw := binary.BigEndian.AppendUint64(nil, fingerprint(query))
	return base64.RawURLEncoding.EncodeToString(append(raw, last...))
}

// parsePageToken returns the id after which the page begins, empty for the first page. A
// token of another query is rejected.
func parsePageToken(query instance.DescribeQuery) (after instance.ID, err error) {
	if query.PageToken == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(query.PageToken)
	if err != nil || len(raw) < 8 || malformed(instance.ID(raw[8:])) != nil {
		return "", errInvalid("InvalidPaginationToken", "The page token is not one that DescribeInstances returned.")
	}
	if binary.BigEndian.Uint64(raw) != fingerprint(query) {
		return "", errInvalid("InvalidPaginationToken", "The page token belongs to another query.")
	}
	return instance.ID(raw[8:]), nil
}

// fingerprint tells queries apart; pages of one query may differ in size.
func fingerprint(query instance.DescribeQuery) uint64 {
	h := fnv.New64a()
	for _, id := range query.IDs {
		_, _ = h.Write([]byte(id))
		_, _ = h.Write([]byte{0})
	}
	return h.Sum64()
}
