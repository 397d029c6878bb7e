// Command instancedctl is the command-line client of instanced, without the service.
package main

import "github.com/instanced/instanced/internal/cli"

func main() { cli.Main() }
