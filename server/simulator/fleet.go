package simulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// ParseFleet reads a fleet file: a CreateInstancesRequest in YAML or JSON. It is
// strict: a field that does not exist, or stands twice, is an error that names it and
// says what is right. Enum values may be given by their short names, as EC2 writes
// states: "stopped" or "shutting-down".
//
// What the instances are like is checked when they are created.
func ParseFleet(file []byte) (*instancedv1.CreateInstancesRequest, error) {
	asJSON, err := yaml.YAMLToJSONStrict(file)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
	}
	var tree any
	if err := json.Unmarshal(asJSON, &tree); err != nil {
		return nil, err
	}
	req := &instancedv1.CreateInstancesRequest{}
	if tree == nil {
		return req, nil
	}
	if documents(file) > 1 {
		return nil, errors.New("it has more than one document: want one, without a line --- within")
	}
	tree, err = normalized("", tree, req.ProtoReflect().Descriptor())
	if err != nil {
		return nil, err
	}
	asJSON, err = json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(asJSON, req); err != nil {
		return nil, errors.New(strings.TrimSpace(strings.TrimPrefix(err.Error(), "proto:")))
	}
	return req, uniqueIDs(req)
}

// documents counts the YAML documents of a file that are not empty.
func documents(file []byte) int {
	n, begun := 0, false
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "---":
			begun = false
		case line == "" || strings.HasPrefix(line, "#"):
		case !begun:
			begun = true
			n++
		}
	}
	return n
}

func uniqueIDs(req *instancedv1.CreateInstancesRequest) error {
	seen := make(map[string]int)
	for i, spec := range req.GetInstances() {
		id := spec.GetInstanceId()
		if first, twice := seen[id]; twice && id != "" {
			return fmt.Errorf("instances[%d].instance_id: %s is that of instances[%d] already; give each its own, or none for a new one", i, id, first)
		}
		seen[id] = i
	}
	return nil
}
