package ec2

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/instanced/instanced/internal/instance"
)

// decoderID is the SDK's middleware that decodes responses.
const decoderID = "OperationDeserializer"

// withLenientDecoding keeps one instance that the SDK cannot decode from failing a response. The
// SDK rejects the whole response for one field, such as a malformed launch time. It is then decoded
// again without the instances that fail, which [undecoded] returns.
func withLenientDecoding(stack *middleware.Stack) error {
	sdk, ok := stack.Deserialize.Get(decoderID)
	if !ok {
		return fmt.Errorf("the SDK has no step %s", decoderID)
	}
	_, err := stack.Deserialize.Swap(decoderID, lenientDecoder{sdk})
	return err
}

// lenientDecoder wraps the SDK's decoder.
type lenientDecoder struct {
	sdk middleware.DeserializeMiddleware
}

func (lenientDecoder) ID() string { return decoderID }

func (d lenientDecoder) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
	raw, rawMetadata, err := next.HandleDeserialize(ctx, in)
	response, ok := raw.RawResponse.(*smithyhttp.Response)
	if err != nil || !ok {
		return raw, rawMetadata, err
	}
	body, err := io.ReadAll(response.Body)
	closeErr := response.Body.Close()
	if err != nil {
		return raw, rawMetadata, fmt.Errorf("reading the response: %w", err)
	}
	if closeErr != nil {
		return raw, rawMetadata, closeErr
	}
	body = legible(body)
	decode := func(document []byte) (middleware.DeserializeOutput, middleware.Metadata, error) {
		return d.sdk.HandleDeserialize(ctx, in, middleware.DeserializeHandlerFunc(
			func(context.Context, middleware.DeserializeInput) (middleware.DeserializeOutput, middleware.Metadata, error) {
				one, whole := raw, *response.Response
				whole.Body = io.NopCloser(bytes.NewReader(document))
				one.RawResponse = &smithyhttp.Response{Response: &whole}
				return one, rawMetadata.Clone(), nil
			}))
	}
	out, metadata, err := decode(body)
	if err == nil || response.StatusCode < 200 || response.StatusCode > 299 {
		return out, metadata, err
	}
	rest, bad := separate(body, func(document []byte) error {
		_, _, err := decode(document)
		return err
	})
	if len(bad) == 0 {
		return out, metadata, err
	}
	restOut, restMetadata, restErr := decode(rest)
	if restErr != nil {
		return out, metadata, err
	}
	restMetadata.Set(undecodedKey{}, bad)
	return restOut, restMetadata, nil
}

type undecodedKey struct{}

// undecoded returns the errors of the instances that could not be decoded.
func undecoded(metadata middleware.Metadata) map[instance.ID]error {
	bad, _ := metadata.Get(undecodedKey{}).(map[instance.ID]error)
	return bad
}

// span is a part of a document.
type span struct{ start, end int }

// record is the element of one instance.
type record struct {
	span
	id instance.ID
}

// reservation is an element with the records of instances in it: a reservation, or the whole
// response where instances stand in no reservation.
type reservation struct {
	span
	whole   bool
	records []record
}

// alone returns a response with one record of a reservation and none of the others.
func (r reservation) alone(document []byte, one record) []byte {
	first, last := r.records[0], r.records[len(r.records)-1]
	parts := [][]byte{document[r.start:first.start], document[one.start:one.end], document[last.end:r.end]}
	if r.whole {
		return bytes.Join(parts, nil)
	}
	return fmt.Appendf(nil, "<response><reservationSet>%s</reservationSet></response>", bytes.Join(parts, nil))
}

// separate returns a response without the instances that cannot be decoded, and their errors. It
// decodes each instance alone, which takes about twice as long as decoding the whole.
func separate(document []byte, decode func([]byte) error) (rest []byte, bad map[instance.ID]error) {
	bad = make(map[instance.ID]error)
	from := 0
	cut := func(s span) {
		rest = append(rest, document[from:s.start]...)
		from = s.end
	}
	for _, r := range reservationsOf(document) {
		var failed []record
		for _, one := range r.records {
			if err := decode(r.alone(document, one)); err != nil {
				if e, ok := errors.AsType[*smithy.DeserializationError](err); ok {
					err = e.Err
				}
				bad[one.id] = err
				failed = append(failed, one)
			}
		}
		if len(failed) == len(r.records) && !r.whole {
			cut(r.span) // the reservation itself may be at fault
			continue
		}
		for _, one := range failed {
			cut(one.span)
		}
	}
	return append(rest, document[from:]...), bad
}

// reservationsOf finds the records of instances in a response; none if it is not XML. An instance
// is an item of an instancesSet, in the response itself or in an item of its reservationSet.
func reservationsOf(document []byte) (list []reservation) {
	decoder := xml.NewDecoder(bytes.NewReader(document))
	var path []string
	at := func(names ...string) bool {
		if len(path) != len(names)+1 {
			return false
		}
		for i, name := range names {
			if !strings.EqualFold(path[i+1], name) {
				return false
			}
		}
		return true
	}
	inReservation := func(names ...string) bool {
		return at(append([]string{"reservationSet", "item"}, names...)...)
	}
	for {
		start := int(decoder.InputOffset())
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			return nil
		}
		end := int(decoder.InputOffset())
		switch token := token.(type) {
		case xml.StartElement:
			path = append(path, token.Name.Local)
			switch {
			case inReservation():
				list = append(list, reservation{span: span{start: start}})
			case at("instancesSet") && (len(list) == 0 || !list[len(list)-1].whole):
				list = append(list, reservation{span: span{0, len(document)}, whole: true})
			case at("instancesSet", "item"), inReservation("instancesSet", "item"):
				r := &list[len(list)-1]
				r.records = append(r.records, record{span: span{start: start}})
			}
		case xml.CharData:
			if at("instancesSet", "item", "instanceId") || inReservation("instancesSet", "item", "instanceId") {
				r := &list[len(list)-1]
				r.records[len(r.records)-1].id = instance.ID(bytes.TrimSpace(token))
			}
		case xml.EndElement:
			switch {
			case inReservation():
				list[len(list)-1].end = end
			case at("instancesSet", "item"), inReservation("instancesSet", "item"):
				r := &list[len(list)-1]
				r.records[len(r.records)-1].end = end
			}
			path = path[:len(path)-1]
		}
	}
}
