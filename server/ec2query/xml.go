package ec2query

import (
	"bytes"
	"encoding/xml"
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// version is the current protocol version.
const version = "2016-11-15"

// versions are the protocol versions of EC2 since 2012. Responses only differ in their
// namespace: clients of older versions ignore elements that they do not know.
var versions = []string{
	"2012-03-01", "2012-04-01", "2012-05-01", "2012-06-01", "2012-06-15", "2012-07-20", "2012-08-15", "2012-10-01", "2012-12-01",
	"2013-02-01", "2013-06-15", "2013-07-15", "2013-08-15", "2013-10-01", "2013-10-15",
	"2014-02-01", "2014-05-01", "2014-06-15", "2014-09-01", "2014-10-01", "2015-03-01", "2015-04-15", "2015-10-01",
	"2016-04-01", "2016-09-15", version,
}

// head is the beginning of every response.
type head struct {
	Namespace string `xml:"xmlns,attr"`
	RequestID string `xml:"requestId"`
}

func (h *head) stamp(version, requestID string) {
	h.Namespace, h.RequestID = "http://ec2.amazonaws.com/doc/"+version+"/", requestID
}

// reply is a response: a pointer to a struct that begins with a [head].
type reply interface {
	stamp(version, requestID string)
}

// encode returns a response as a document of a protocol version. Characters that XML does not
// allow become U+FFFD.
func encode(action, version string, r reply, requestID string) ([]byte, error) {
	r.stamp(version, requestID)
	return document(r, action+"Response")
}

// encodeError returns the document of an error.
func encodeError(r refusal, requestID string) ([]byte, error) {
	type item struct {
		Code    string
		Message string
	}
	return document(struct {
		Errors    []item `xml:"Errors>Error"`
		RequestID string
	}{[]item{{r.code, r.message}}, requestID}, "Response")
}

func document(v any, name string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	if err := xml.NewEncoder(&b).EncodeElement(v, xml.StartElement{Name: xml.Name{Local: name}}); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// list is a list in EC2's form: its elements are called item, and it is present even if it is
// empty.
type list[T any] struct {
	Items []T `xml:"item"`
}

type stateItem struct {
	Code int32  `xml:"code"`
	Name string `xml:"name"`
}

func stateOf(s instance.State) stateItem { return stateItem{Code: s.Code(), Name: s.String()} }

type changeItem struct {
	ID       instance.ID `xml:"instanceId"`
	Current  stateItem   `xml:"currentState"`
	Previous stateItem   `xml:"previousState"`
}

type changesReply struct {
	head
	Instances list[changeItem] `xml:"instancesSet"`
}

type returnReply struct {
	head
	Return bool `xml:"return"`
}

type tagItem struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

// tagsOf returns tags in the order of their keys; nil for none, as EC2 leaves out the
// list then.
func tagsOf(tags map[string]string) *list[tagItem] {
	if len(tags) == 0 {
		return nil
	}
	items := make([]tagItem, 0, len(tags))
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		items = append(items, tagItem{key, tags[key]})
	}
	return &list[tagItem]{items}
}

type reasonItem struct {
	Code    string `xml:"code"`
	Message string `xml:"message"`
}

type placementItem struct {
	AvailabilityZone string `xml:"availabilityZone"`
	GroupName        string `xml:"groupName"`
	Tenancy          string `xml:"tenancy"`
}

type configuredItem struct {
	Configured bool `xml:"configured"`
}

// instanceItem is an instance in DescribeInstances. ImageID and LaunchIndex are always present,
// because some clients crash without them.
type instanceItem struct {
	ID               instance.ID     `xml:"instanceId"`
	ImageID          string          `xml:"imageId"`
	State            stateItem       `xml:"instanceState"`
	PrivateDNSName   string          `xml:"privateDnsName"`
	DNSName          string          `xml:"dnsName"`
	Reason           string          `xml:"reason"`
	LaunchIndex      int32           `xml:"amiLaunchIndex"`
	Type             string          `xml:"instanceType"`
	LaunchTime       string          `xml:"launchTime"`
	Placement        placementItem   `xml:"placement"`
	PrivateIPAddress string          `xml:"privateIpAddress,omitempty"`
	IPAddress        string          `xml:"ipAddress,omitempty"`
	StateReason      *reasonItem     `xml:"stateReason"`
	RootDeviceType   string          `xml:"rootDeviceType"`
	Lifecycle        string          `xml:"instanceLifecycle,omitempty"`
	ClientToken      string          `xml:"clientToken,omitempty"`
	Tags             *list[tagItem]  `xml:"tagSet"`
	Hibernation      *configuredItem `xml:"hibernationOptions"`
}

func instanceOf(i *instance.Instance) instanceItem {
	item := instanceItem{
		ID:               i.ID,
		ImageID:          i.ImageID,
		LaunchIndex:      i.AMILaunchIndex,
		ClientToken:      launchedOf(i).ClientToken,
		State:            stateOf(i.State),
		PrivateDNSName:   privateNameOf(i),
		DNSName:          publicNameOf(i),
		Reason:           i.StateTransitionReason,
		Type:             i.Type,
		LaunchTime:       timestamp(i.LaunchTime),
		Placement:        placementItem{AvailabilityZone: i.AvailabilityZone, Tenancy: i.Tenancy},
		PrivateIPAddress: i.PrivateIPAddress,
		IPAddress:        i.PublicIPAddress,
		RootDeviceType:   i.RootDeviceType,
		Lifecycle:        i.Lifecycle,
		Tags:             tagsOf(i.Tags),
	}
	if r := i.StateReason; r != nil {
		item.StateReason = &reasonItem{Code: r.Code, Message: r.Message}
	}
	if s := i.Simulator; s != nil {
		item.Hibernation = &configuredItem{s.HibernationConfigured}
	}
	return item
}

// What earlier versions recorded has no image and no host names: these were made from the
// addresses whenever they were asked for. They still are until the instance has been
// compared with the backend once.

func privateNameOf(i *instance.Instance) string {
	if i.ImageID == "" {
		return i.UsualPrivateDNSName()
	}
	return i.PrivateDNSName
}

func publicNameOf(i *instance.Instance) string {
	if i.ImageID == "" {
		return i.UsualPublicDNSName()
	}
	return i.PublicDNSName
}

// timestamp is a time in EC2's format.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
