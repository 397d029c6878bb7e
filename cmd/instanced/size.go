package main

import (
	"fmt"
	"strconv"
	"strings"
)

// parseSize accepts a number of bytes, such as 1048576, 512MiB or 1GiB.
func parseSize(text string) (int64, error) {
	factors := map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
	digits := strings.TrimRight(text, "BKMGTi")
	factor, ok := factors[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<62)/factor {
		return 0, fmt.Errorf("%q is not a size, such as 512MiB, 1GiB or a number of bytes", text)
	}
	return n * factor, nil
}
