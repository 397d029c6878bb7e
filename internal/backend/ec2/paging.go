package ec2

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/instanced/instanced/internal/instance"
)

// How many pages a list may have.
const (
	maxPages      = 10_000
	maxPagesOfIDs = 100
)

// position is a position in a list that EC2 returns in pages. It is part of our page tokens, so
// that a cycle is noticed without remembering all tokens: each is compared with the one before it
// and with the one after the 1st, 2nd, 4th, 8th, … page (Brent's algorithm).
type position struct {
	token string // EC2's, empty for the first page
	pages int    // so far
	mark  uint64 // hash of the token behind the last page whose number is a power of two
}

// next returns the position after another page. It is false if EC2 returned that token before, or
// too many pages.
func (p position) next(token string, maxPages int) (position, bool) {
	digest := fnv.New64a()
	_, _ = digest.Write([]byte(token)) // it never fails
	hash := digest.Sum64()
	if p.pages > 0 && (token == p.token || hash == p.mark) || p.pages+1 >= maxPages {
		return position{}, false
	}
	p.token = token
	if p.pages++; p.pages&(p.pages-1) == 0 {
		p.mark = hash
	}
	return p, true
}

// String returns the page token of a position, empty for the beginning.
func (p position) String() string {
	if p.token == "" {
		return ""
	}
	return fmt.Sprintf("%d.%x.%s", p.pages, p.mark, p.token)
}

// parsePosition reads a page token.
func parsePosition(s string) (p position, ok bool) {
	if s == "" {
		return position{}, true
	}
	pages, rest, _ := strings.Cut(s, ".")
	mark, token, found := strings.Cut(rest, ".")
	var pagesErr, markErr error
	p.token = token
	p.pages, pagesErr = strconv.Atoi(pages)
	p.mark, markErr = strconv.ParseUint(mark, 16, 64)
	return p, found && token != "" && pagesErr == nil && markErr == nil && p.pages > 0
}

// errEndlessPages is the error of a list whose pages do not end.
func (c *client) errEndlessPages() *instance.Error {
	return &instance.Error{
		Kind:   instance.KindUnavailable,
		Reason: instance.ReasonEndlessPages,
		Message: fmt.Sprintf("the pages of DescribeInstances do not end: the EC2 endpoint %s gives a NextToken again that it has given before, or ever more of them",
			c.endpoint()),
		RetryAfter: retryUnavailable,
	}
}

// endpoint names the endpoint, for messages.
func (c *client) endpoint() string {
	if own := aws.ToString(c.api.Options().BaseEndpoint); own != "" {
		return own
	}
	return "of " + c.region
}
