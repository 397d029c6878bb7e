package admin

import (
	"bytes"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"text/tabwriter"
)

// Section is a table of /statusz. Its texts may come from anywhere: they are escaped.
type Section struct {
	Title string
	// Columns are the headings; none for a list of names and values.
	Columns []string
	Rows    [][]string
	// Note is shown in place of rows where there are none.
	Note string
}

var statusTemplate = template.Must(template.New("statusz").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>instanced</title>
<style>body{font-family:sans-serif}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:2px 8px;text-align:left;vertical-align:top}</style></head>
<body><h1>instanced</h1>
<p><a href="/readyz?verbose">readyz</a> <a href="/livez?verbose">livez</a> <a href="/metrics">metrics</a> <a href="/debug/pprof/">pprof</a> <a href="/statusz?format=text">as text</a></p>
{{range .}}<h2>{{.Title}}</h2>
{{if .Rows}}<table>
{{if .Columns}}<tr>{{range .Columns}}<th>{{.}}</th>{{end}}</tr>
{{end}}{{range .Rows}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>
{{end}}</table>{{else}}<p>{{.Note}}</p>{{end}}
{{end}}</body></html>
`))

// statusPage serves sections as a page, or as text with ?format=text or Accept: text/plain.
func statusPage(status func() []Section) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sections := status()
		for _, s := range sections {
			for _, row := range s.Rows {
				for i := range row {
					row[i] = oneLine(row[i])
				}
			}
		}
		if r.URL.Query().Get("format") == "text" || strings.HasPrefix(r.Header.Get("Accept"), "text/plain") {
			writeText(w, http.StatusOK, statusText(sections))
			return
		}
		var page bytes.Buffer
		if err := statusTemplate.Execute(&page, sections); err != nil {
			writeText(w, http.StatusInternalServerError, err.Error()+"\n")
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		_, _ = page.WriteTo(w) // the client may be gone
	}
}

// statusText returns sections as text.
func statusText(sections []Section) string {
	var b strings.Builder
	for i, s := range sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "# %s\n", s.Title)
		if len(s.Rows) == 0 {
			fmt.Fprintln(&b, s.Note)
			continue
		}
		table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range append([][]string{s.Columns}, s.Rows...) {
			if len(row) > 0 {
				fmt.Fprintln(table, strings.TrimRight(strings.Join(row, "\t"), "\t"))
			}
		}
		_ = table.Flush() // a strings.Builder never fails
	}
	return b.String()
}
