// Words checks that names and sentences use the project's standard terms: docs/glossary.md.
//
//	go run ./words DIRECTORY
//
// It prints one line for each finding, as FILE:LINE: MESSAGE, and exits with status 1 if there
// are any. Go files are checked by declaration, comment and string; Markdown, proto and test
// scripts as text. Generated code is left out, and so are the bodies of decisions, which record
// what was thought at the time.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: words DIRECTORY")
		os.Exit(2)
	}
	findings, err := checkTree(os.DirFS(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
		os.Exit(2)
	}
	for _, f := range findings {
		fmt.Println(filepath.Join(os.Args[1], f.String()))
	}
	if len(findings) > 0 {
		os.Exit(1)
	}
}

// checkTree returns the findings in all files of a tree, in order of file and line.
func checkTree(tree fs.FS) ([]finding, error) {
	var findings []finding
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := entry.Name(); name != "." && (strings.HasPrefix(base, ".") || base == "gen" || base == "tools") {
				return fs.SkipDir
			}
			return nil
		}
		check := checkerOf(name)
		if check == nil {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		found, err := check(name, source)
		findings = append(findings, found...)
		return err
	})
	return findings, err
}

// checkerOf returns what checks a file, or nil for files that are not checked.
func checkerOf(name string) func(name string, source []byte) ([]finding, error) {
	switch path := filepath.ToSlash(name); {
	case strings.HasPrefix(path, "docs/decisions/") && !strings.HasSuffix(path, "/README.md"):
		return checkTitle
	case strings.HasSuffix(path, ".go"):
		return checkGo
	case strings.HasSuffix(path, ".md"), strings.HasSuffix(path, ".proto"), strings.HasSuffix(path, ".txtar"):
		return checkText
	}
	return nil
}
