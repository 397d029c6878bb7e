package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// addTableFlags declares the flags of a verb that prints a table of instances.
func (t *Terminal) addTableFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.noHeaders, "no-headers", false, "do not print the header line")
	cmd.Flags().BoolVarP(&t.idsOnly, "quiet", "q", false, "print only ids, one per line")
}

// minColumn is the minimum width, in characters, to which a column is cut before it is left
// out.
const minColumn = 10

// table is text in columns.
type table struct {
	t    *Terminal
	rows [][]string
	// flexible are the columns to cut or leave out on a narrow terminal, the least important
	// first.
	flexible []string
}

// newTable returns a table whose first column has the ids.
func (t *Terminal) newTable(header ...string) *table {
	return &table{t: t, rows: [][]string{header}}
}

// giveWay names the columns that are cut, and then left out, on a narrow terminal: the
// least important first.
func (tb *table) giveWay(columns ...string) *table {
	tb.flexible = columns
	return tb
}

func (tb *table) add(cells ...string) { tb.rows = append(tb.rows, cells) }

// print writes the columns, each as wide as its widest cell and the last one as it is.
func (tb *table) print() error {
	var out strings.Builder
	if tb.t.idsOnly {
		for _, row := range tb.rows[1:] {
			fmt.Fprintln(&out, row[0])
		}
		_, err := io.WriteString(tb.t.Stdout, out.String())
		return err
	}
	widths := make([]int, len(tb.rows[0]))
	for _, row := range tb.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if tb.t.output == outputTable {
		tb.fit(widths, tb.t.width())
	}
	for n, row := range tb.rows {
		if n == 0 && tb.t.noHeaders {
			continue
		}
		var line strings.Builder
		for i, cell := range row {
			if widths[i] == 0 {
				continue
			}
			cell = cut(cell, widths[i])
			text := cell
			if n > 0 {
				text = tb.t.Coloured(cell)
			}
			line.WriteString(text)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		out.WriteString(strings.TrimRight(line.String(), " "))
		out.WriteByte('\n')
	}
	_, err := io.WriteString(tb.t.Stdout, out.String())
	return err
}

// fit narrows columns until a line has at most limit characters; 0 is no limit. A column of
// width 0 is left out.
func (tb *table) fit(widths []int, limit int) {
	for _, name := range tb.flexible {
		total := -2
		for _, w := range widths {
			if w > 0 {
				total += w + 2
			}
		}
		excess := total - limit
		if limit == 0 || excess <= 0 {
			return
		}
		i := slices.Index(tb.rows[0], name)
		if widths[i]-excess >= max(minColumn, len(name)) {
			widths[i] -= excess
		} else {
			widths[i] = 0
		}
	}
}

// cut shortens a text to a number of characters, the last of which then is an ellipsis.
func cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// width returns the width of the terminal in characters; 0 if it is unknown or the output is
// not a terminal.
func (t *Terminal) width() int {
	f, ok := t.Stdout.(*os.File)
	if !ok || !isCharDevice(f) {
		return 0
	}
	if columns, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && columns > 0 {
		return columns
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
