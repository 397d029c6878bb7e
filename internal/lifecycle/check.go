package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// checker collects everything that is wrong with a request, to report all of it together.
type checker struct {
	violations []instance.Violation
	// code and message are EC2's, of the first violation that it has a code for.
	code, message string
}

func (c *checker) add(field, format string, args ...any) {
	c.violations = append(c.violations, instance.Violation{Field: field, Description: fmt.Sprintf(format, args...)})
}

// err returns nil if nothing is wrong. If EC2 has a code for all that is wrong, the error is
// EC2's.
func (c *checker) err() error {
	if len(c.violations) == 0 {
		return nil
	}
	e := &instance.Error{Kind: instance.KindInvalid, Reason: instance.ReasonInvalidRequest, Violations: c.violations}
	first := c.violations[0]
	if c.code != "" && sameCode(c.violations) {
		e.Code, e.Reason, e.Message = c.code, "", c.message
		return e
	}
	e.Message = first.Field + ": " + first.Description
	if more := len(c.violations) - 1; more > 0 {
		e.Message += fmt.Sprintf(" (and %d more)", more)
	}
	return e
}

func sameCode(violations []instance.Violation) bool {
	for _, v := range violations {
		if v.Reason != violations[0].Reason {
			return false
		}
	}
	return true
}

// ids checks a list of ids and returns it without repetitions. Every malformed id is
// reported; a repeated one only once if there are more than MaxInstanceIDs.
func (c *checker) ids(field string, ids []string, minimum int) []instance.ID {
	switch {
	case len(ids) < minimum:
		c.add(field, "names no instance: want 1 to %d ids", MaxInstanceIDs)
		return nil
	case len(ids) > MaxInstanceIDs:
		if distinct := countDistinct(ids); distinct > MaxInstanceIDs {
			c.add(field, "has %d ids: want at most %d", distinct, MaxInstanceIDs)
			return nil
		}
	}
	parsed := make([]instance.ID, 0, min(len(ids), MaxInstanceIDs))
	var seen map[string]struct{}
	if len(ids) > 1 {
		seen = make(map[string]struct{}, cap(parsed))
	}
	for i, s := range ids {
		if _, repeated := seen[s]; repeated {
			continue
		}
		id, err := instance.ParseID(s)
		if seen != nil && (err == nil || len(ids) > MaxInstanceIDs) {
			seen[s] = struct{}{}
		}
		if err != nil {
			malformed := instance.AsError(err)
			if c.code == "" {
				c.code, c.message = malformed.Code, malformed.Message
			}
			c.violations = append(c.violations, instance.Violation{
				Field:       fmt.Sprintf("%s[%d]", field, i),
				Description: malformed.Message + `: want "i-" followed by 8 or 17 hex digits in lower case`,
				Reason:      malformed.Code,
			})
			continue
		}
		parsed = append(parsed, id)
	}
	return parsed
}

func countDistinct(texts []string) int {
	seen := make(map[string]struct{}, len(texts))
	for _, s := range texts {
		seen[s] = struct{}{}
	}
	return len(seen)
}

// printable checks that a text is printable ASCII of limited length.
func (c *checker) printable(field, text string, maxLength int) {
	if len(text) > maxLength {
		c.add(field, "has %d characters: want at most %d", len(text), maxLength)
		return
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			c.add(field, "has a character that is not printable ASCII at byte %d", i)
			return
		}
	}
}

func (c *checker) states(field string, states []instance.State) {
	for i, s := range states {
		if s < instance.StatePending || s > instance.StateStopped {
			c.add(fmt.Sprintf("%s[%d]", field, i), "is not a state: want pending, running, shutting-down, terminated, stopping or stopped")
		}
	}
}

func (c *checker) filter(field string, f Filter) *instance.Filter {
	values := len(f.InstanceIDs) + len(f.States) + len(f.Types) + len(f.AvailabilityZones) + len(f.Regions) + len(f.AccountIDs)
	bytes := textBytes(f.InstanceIDs) + textBytes(f.Types) + textBytes(f.AvailabilityZones) + textBytes(f.Regions) + textBytes(f.AccountIDs)
	for _, t := range f.Tags {
		values += max(1, len(t.Values))
		bytes += len(t.Key) + textBytes(t.Values)
	}
	if values > MaxFilterValues {
		c.add(field, "has %d values: want at most %d", values, MaxFilterValues)
		return nil
	}
	if bytes > MaxFilterBytes {
		c.add(field, "has %d bytes of text: want at most %d", bytes, MaxFilterBytes)
		return nil
	}
	out := &instance.Filter{
		IDs:               c.ids(field+".instance_ids", f.InstanceIDs, 0),
		States:            f.States,
		Types:             sorted(f.Types),
		AvailabilityZones: sorted(f.AvailabilityZones),
		Regions:           sorted(f.Regions),
		AccountIDs:        sorted(f.AccountIDs),
	}
	slices.Sort(out.IDs)
	c.states(field+".states", f.States)
	for _, list := range []struct {
		name   string
		values []string
	}{
		{"instance_types", f.Types},
		{"availability_zones", f.AvailabilityZones},
		{"regions", f.Regions},
		{"account_ids", f.AccountIDs},
	} {
		for i, v := range list.values {
			if v == "" || len(v) > MaxTagValueLength {
				c.add(fmt.Sprintf("%s.%s[%d]", field, list.name, i), "has %d characters: want 1 to %d", len(v), MaxTagValueLength)
			}
		}
	}
	if len(f.Tags) > MaxFilterTags {
		c.add(field+".tags", "has %d keys: want at most %d", len(f.Tags), MaxFilterTags)
		return nil
	}
	for i, t := range f.Tags {
		at := fmt.Sprintf("%s.tags[%d]", field, i)
		if t.Key == "" || len([]rune(t.Key)) > MaxTagKeyLength {
			c.add(at+".key", "has %d characters: want 1 to %d", len([]rune(t.Key)), MaxTagKeyLength)
		}
		if _, twice := out.Tags[t.Key]; twice {
			c.add(at+".key", "occurs twice in the filter: give all its values in one place")
		}
		for j, v := range t.Values {
			if len([]rune(v)) > MaxTagValueLength {
				c.add(fmt.Sprintf("%s.values[%d]", at, j), "has %d characters: want at most %d", len([]rune(v)), MaxTagValueLength)
			}
		}
		if out.Tags == nil {
			out.Tags = make(map[string][]string, len(f.Tags))
		}
		out.Tags[t.Key] = sorted(t.Values)
	}
	return out
}

func textBytes(texts []string) int {
	bytes := 0
	for _, t := range texts {
		bytes += len(t)
	}
	return bytes
}

func (c *checker) pageSize(size int) int {
	if size < 0 || size > MaxPageSize {
		c.add("page_size", "is %d: want 1 to %d, or 0 for %d", size, MaxPageSize, DefaultPageSize)
	}
	if size == 0 {
		return DefaultPageSize
	}
	return size
}

func (c *checker) duration(field string, d *time.Duration, minimum, maximum, absent time.Duration) time.Duration {
	if d == nil {
		return absent
	}
	switch {
	case *d >= minimum && *d <= maximum:
	case minimum <= time.Nanosecond:
		c.add(field, "is %v: want more than 0, and at most %v", *d, maximum)
	default:
		c.add(field, "is %v: want %v to %v", *d, minimum, maximum)
	}
	return *d
}

// verbOptions are the options that each verb has.
var verbOptions = map[instance.Verb]struct{ additionalInfo, hibernate, shutdown bool }{
	instance.VerbStart:     {additionalInfo: true},
	instance.VerbStop:      {hibernate: true, shutdown: true},
	instance.VerbReboot:    {},
	instance.VerbTerminate: {shutdown: true},
}

// checkCommand turns a request into a command, or reports everything that is wrong with it.
func checkCommand(caller Caller, req CommandRequest) (instance.Command, error) {
	var c checker
	options, known := verbOptions[req.Verb]
	if !known {
		c.add("verb", "%q is not a verb", req.Verb)
	}
	cmd := instance.Command{
		Verb:           req.Verb,
		IDs:            c.ids("instance_ids", req.InstanceIDs, 1),
		PerInstance:    req.FailureMode == PerInstance,
		DryRun:         req.DryRun,
		AdditionalInfo: req.AdditionalInfo,
		Hibernate:      req.Hibernate,
		Force:          req.Force,
		SkipOSShutdown: req.SkipOSShutdown,
		Principal:      caller.Principal,
	}
	if req.FailureMode > PerInstance {
		c.add("failure_mode", "is not a failure mode: want FAILURE_MODE_WHOLE_CALL or FAILURE_MODE_PER_INSTANCE")
	}
	if len(req.AdditionalInfo) > MaxAdditionalInfoBytes {
		c.add("additional_info", "has %d bytes: want at most %d", len(req.AdditionalInfo), MaxAdditionalInfoBytes)
	}
	if req.AdditionalInfo != "" && !options.additionalInfo {
		c.add("additional_info", "is no option of %s", req.Verb)
	}
	if req.Hibernate && !options.hibernate {
		c.add("hibernate", "is no option of %s", req.Verb)
	}
	if req.Force && !options.shutdown {
		c.add("force", "is no option of %s", req.Verb)
	}
	if req.SkipOSShutdown && !options.shutdown {
		c.add("skip_os_shutdown", "is no option of %s", req.Verb)
	}
	c.printable("client_token", req.ClientToken, MaxClientTokenLength)
	c.printable("principal", caller.Principal, instance.MaxPrincipalLength)
	c.printable("request_id", caller.RequestID, MaxRequestIDLength)
	return cmd, c.err()
}
