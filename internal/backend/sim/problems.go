package sim

import (
	"fmt"

	"github.com/instanced/instanced/internal/instance"
)

// violations collects all problems of a request.
type violations []instance.Violation

func (v *violations) add(field, format string, args ...any) {
	*v = append(*v, instance.Violation{Field: field, Description: fmt.Sprintf(format, args...)})
}

// refuse adds what EC2 has an error for.
func (v *violations) refuse(field string, err *instance.Error) {
	*v = append(*v, instance.Violation{Field: field, Description: err.Message, Reason: err.Code})
}

// err returns nil if there is no problem.
func (v violations) err() error {
	if len(v) == 0 {
		return nil
	}
	message := v[0].Field + ": " + v[0].Description
	if len(v) > 1 {
		message = fmt.Sprintf("%s (and %d more)", message, len(v)-1)
	}
	return &instance.Error{Kind: instance.KindInvalid, Message: message, Violations: v}
}
