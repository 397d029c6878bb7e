// Package config reads the configuration file of the service: YAML, strictly.
//
// The caller describes each [Setting] by its key and by a function that accepts a value;
// [Parse] returns the values with their positions, or every problem of the file at once, each
// with its line and column and, for an unknown key, the nearest known one. It knows nothing
// about what the settings mean.
//
// YAML is read without what makes it surprising in a configuration: anchors, aliases, tags,
// merge keys, tabs as indentation, repeated keys and further documents are errors. Without
// aliases, the work is in proportion to the size of the file, which is at most [MaxSize].
package config
