package ec2

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/instanced/instanced/internal/instance"
)

var (
	// idForm matches ids in EC2's messages: bare, quoted, in lists, at the end of an ARN.
	idForm = regexp.MustCompile(`\bi-(?:[0-9a-f]{17}|[0-9a-f]{8})\b`)
	// listForm matches lists of ids.
	listForm = regexp.MustCompile(`\bi-[0-9a-f]+(?:, ?i-[0-9a-f]+)+\b`)
	// countForm matches how many instances a call asked for, in the message of a quota.
	countForm = regexp.MustCompile(`(more instances \()\d+(\))`)
)

// namedIn returns the ids of a call that a message names, in the order of the message.
func namedIn(text string, asked []instance.ID) []instance.ID {
	var named []instance.ID
	left := setOf(asked)
	for _, s := range idForm.FindAllString(text, -1) {
		if id := instance.ID(s); left[id] {
			delete(left, id)
			named = append(named, id)
		}
	}
	return named
}

// setOf returns a set of ids.
func setOf(ids []instance.ID) map[instance.ID]bool {
	set := make(map[instance.ID]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// textFor returns the message that a caller would have got for its own instances: own are the
// named instances that it asked for.
func textFor(code, text string, named, own []instance.ID) string {
	switch {
	case len(own) == 0 || slices.Equal(named, own):
		return text
	case code == instance.CodeNotFound:
		return instance.NotFound(own...).Message
	case len(named) == 1:
		return strings.ReplaceAll(text, string(named[0]), string(own[0]))
	}
	return listForm.ReplaceAllLiteralString(text, instance.JoinIDs(own))
}

// textForCount returns the message of a quota as a call for n instances would have got it.
func textForCount(text string, n int) string {
	return countForm.ReplaceAllString(text, "${1}"+strconv.Itoa(n)+"${2}")
}
