package server_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// rpc is a call of the contract, with a request to begin with.
type rpc struct {
	name string
	seed proto.Message
}

// rpcs lists every call of both services.
func rpcs() []rpc {
	return []rpc{
		{instancedv1.InstanceService_StartInstances_FullMethodName, &instancedv1.StartInstancesRequest{InstanceIds: ids(2), ClientToken: "t", FailureMode: 7}},
		{instancedv1.InstanceService_StopInstances_FullMethodName, &instancedv1.StopInstancesRequest{InstanceIds: []string{""}, Hibernate: true}},
		{instancedv1.InstanceService_RebootInstances_FullMethodName, &instancedv1.RebootInstancesRequest{InstanceIds: ids(1), DryRun: true}},
		{instancedv1.InstanceService_TerminateInstances_FullMethodName, &instancedv1.TerminateInstancesRequest{InstanceIds: ids(1), ClientToken: "t"}},
		{instancedv1.InstanceService_DescribeInstances_FullMethodName, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{9}, Tags: []*instancedv1.TagFilter{nil}}, PageToken: "AAAA"}},
		{instancedv1.InstanceService_WaitInstances_FullMethodName, &instancedv1.WaitInstancesRequest{InstanceIds: ids(1), States: []instancedv1.InstanceStateName{running}, Timeout: &durationpb.Duration{Seconds: -1, Nanos: 5}}},
		{instancedv1.InstanceService_ListEvents_FullMethodName, &instancedv1.ListEventsRequest{InstanceIds: ids(1), PageSize: -1}},
		{instancedv1.InstanceService_GetServerInfo_FullMethodName, &instancedv1.GetServerInfoRequest{}},
		{instancedv1.InstanceService_WatchInstances_FullMethodName, &instancedv1.WatchInstancesRequest{AfterCursor: "AQ", ProgressInterval: &durationpb.Duration{Seconds: 1 << 62}}},
		{instancedv1.SimulatorService_CreateInstances_FullMethodName, &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: -5, State: 99}}}},
		{instancedv1.SimulatorService_ChangeInstances_FullMethodName, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{InstanceIds: ids(1), Action: 77}}}},
		{instancedv1.SimulatorService_SetFaults_FullMethodName, &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{Kind: 3, Probability: -1}}}},
		{instancedv1.SimulatorService_GetFaults_FullMethodName, &instancedv1.GetFaultsRequest{}},
		{instancedv1.SimulatorService_Reset_FullMethodName, &instancedv1.ResetRequest{}},
	}
}

func TestEveryCallIsFuzzed(t *testing.T) {
	listed := map[string]bool{}
	for _, r := range rpcs() {
		listed[r.name] = true
	}
	for _, service := range []grpc.ServiceDesc{instancedv1.InstanceService_ServiceDesc, instancedv1.SimulatorService_ServiceDesc} {
		for _, m := range service.Methods {
			if name := "/" + service.ServiceName + "/" + m.MethodName; !listed[name] {
				t.Errorf("%s is not fuzzed", name)
			}
		}
		for _, m := range service.Streams {
			if name := "/" + service.ServiceName + "/" + m.StreamName; !listed[name] {
				t.Errorf("%s is not fuzzed", name)
			}
		}
	}
}

// FuzzRequests sends bytes as they may come from anywhere.
func FuzzRequests(f *testing.F) {
	srv := servertest.New(f, servertest.Options{Fleet: fleet(3)})
	methods := rpcs()
	for i, m := range methods {
		body, err := proto.Marshal(m.seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), body)
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		mustAnswerOrRefuse(t, srv, methods[int(method)%len(methods)].name, body)
	})
}

// FuzzMessages sends messages whose every field is set to something that matters to it,
// as the entropy has it.
func FuzzMessages(f *testing.F) {
	srv := servertest.New(f, servertest.Options{Fleet: fleet(3)})
	cursor := head(f, srv)
	methods := rpcs()
	for i := range methods {
		f.Add(uint8(i), []byte("0123456789abcdef0123456789abcdef"))
		f.Add(uint8(i), []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	}
	f.Fuzz(func(t *testing.T, method uint8, random []byte) {
		m := methods[int(method)%len(methods)]
		message := m.seed.ProtoReflect().New()
		(&author{entropy: random, cursor: cursor}).write(message, 0)
		body, err := proto.Marshal(message.Interface())
		if err != nil {
			t.Fatal(err)
		}
		mustAnswerOrRefuse(t, srv, m.name, body)
	})
}

// author writes messages out of entropy; without any left, it writes nothing.
type author struct {
	entropy []byte
	cursor  string
}

func (a *author) next() int {
	if len(a.entropy) == 0 {
		return 0
	}
	b := a.entropy[0]
	a.entropy = a.entropy[1:]
	return int(b)
}

func (a *author) write(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if a.next()%2 == 0 || depth > 4 {
			continue
		}
		switch {
		case field.IsMap():
			for range a.next() % 4 {
				m.Mutable(field).Map().Set(a.scalar(field.MapKey()).MapKey(), a.scalar(field.MapValue()))
			}
		case field.IsList():
			list := m.Mutable(field).List()
			for range a.next() % 5 {
				if field.Message() == nil {
					list.Append(a.scalar(field))
					continue
				}
				element := list.NewElement()
				a.write(element.Message(), depth+1)
				list.Append(element)
			}
		case field.Message() != nil:
			a.write(m.Mutable(field).Message(), depth+1)
		default:
			m.Set(field, a.scalar(field))
		}
	}
}

func (a *author) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	n := a.next()
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n%20 - 1))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32([]int32{0, 1, 2, 5, 1000, 1001, -1, math.MaxInt32, math.MinInt32}[n%9])
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64([]int64{0, 1, 60, -1, 315576000000, math.MaxInt64, math.MinInt64}[n%7])
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 0.5, 1, -1, 2, math.NaN(), math.Inf(1), math.SmallestNonzeroFloat64}[n%8])
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(a.text(n))
	default:
		panic("the contract has a field of kind " + field.Kind().String())
	}
}

func (a *author) text(n int) string {
	words := []string{
		"", id(0), id(1), id(2), missing, "i-0abcdef1", a.cursor, a.cursor[1:], "stopped", "StartInstances", "DescribeInstances", "t3.micro", "m5.large",
		"a", "us-east-1a", "us-east-1", "dedicated", "host", "ebs", "instance-store", "spot", "standard", "unlimited", "red", "team", "Client.InternalError",
		"t\u00f6k\u00e8n", "\x00", "aws:", string(make([]byte, 300)),
	}
	if n%4 == 3 { // as it comes
		length := min(a.next()%32, len(a.entropy))
		text := a.entropy[:length]
		a.entropy = a.entropy[length:]
		return fmt.Sprintf("%q", text)
	}
	return words[(n/4+a.next())%len(words)]
}

var upperSnakeCase = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// mustAnswerOrRefuse sends a request. Whatever is in it, the answer is an answer, or a
// refusal that says why; it is never a bug. What is refused for its form has changed
// nothing.
func mustAnswerOrRefuse(t *testing.T, srv *servertest.Server, method string, body []byte) {
	t.Helper()
	before := whatThereIs(t, srv)
	err := send(t, srv, method, body)
	code := status.Code(err)
	switch code {
	case codes.OK, codes.DeadlineExceeded, codes.Canceled:
		return
	case codes.Internal, codes.Unknown:
		if !undecodable(err) && !injected(err) {
			t.Errorf("%s: %v", method, err)
		}
		return
	default:
		checkRefusal(t, method, err)
	}
	// What was begun before, such as by the last request, may still be recorded.
	for attempt := 0; code == codes.InvalidArgument && whatThereIs(t, srv) != before; attempt++ {
		if attempt == 20 {
			t.Fatalf("%s changes something each time that it is refused: %v", method, err)
		}
		before = whatThereIs(t, srv)
		err = send(t, srv, method, body)
		code = status.Code(err)
	}
}

// injected reports whether an error is one of EC2's that a fault of the simulator made.
func injected(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetMetadata()["ec2_error_code"] == "InternalError" {
			return true
		}
	}
	return false
}

func send(t *testing.T, srv *servertest.Server, method string, body []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stream, err := srv.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(body); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	return stream.RecvMsg(&answer)
}

// whatThereIs names the end of the log and the faults that are planned.
func whatThereIs(t *testing.T, srv *servertest.Server) string {
	t.Helper()
	faults, err := srv.Simulator().GetFaults(patient(t), &instancedv1.GetFaultsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	planned, err := proto.MarshalOptions{Deterministic: true}.Marshal(faults)
	if err != nil {
		t.Fatal(err)
	}
	return string(binary.AppendUvarint(planned, uint64(len(planned)))) + head(t, srv)
}

// checkRefusal checks what is promised of every error.
func checkRefusal(t *testing.T, method string, err error) {
	t.Helper()
	s := status.Convert(err)
	if size := proto.Size(s.Proto()); size > 4096 {
		t.Errorf("%s: the status has %d bytes: %v", method, size, err)
	}
	var info *errdetails.ErrorInfo
	for _, d := range s.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			info = i
		}
	}
	switch {
	case info == nil:
		t.Errorf("%s: no ErrorInfo: %v", method, err)
	case info.GetDomain() != "instanced" && info.GetDomain() != "ec2.amazonaws.com":
		t.Errorf("%s: the domain is %q: %v", method, info.GetDomain(), err)
	case !upperSnakeCase.MatchString(info.GetReason()):
		t.Errorf("%s: the reason is %q: %v", method, info.GetReason(), err)
	case info.GetMetadata()["request_id"] == "":
		t.Errorf("%s: there is no request id: %v", method, err)
	}
}
