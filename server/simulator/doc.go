// Package simulator serves SimulatorService: it populates the simulator, does to its
// instances what happens from outside, and makes things fail. It also reads fleet
// files, which say the same in YAML.
//
// Each call returns when what it did is in the journal, so that whoever made it sees
// it in DescribeInstances.
package simulator
