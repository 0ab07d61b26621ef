package main

// The document: what measures write into it, and the page around that.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	documentName = "benchmarks.md"
	plotFolder   = "benchmarks"
	rawName      = "raw.json"
)

// document is the page as it grows.
type document struct {
	page    strings.Builder
	out     string
	results *results
	order   []string // of peers
	drawn   []string
	errs    []error
}

func (d *document) add(format string, args ...any) {
	_, _ = fmt.Fprintf(&d.page, format, args...)
}

// text writes a paragraph.
func (d *document) text(format string, args ...any) {
	d.add("%s\n\n", strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

func (d *document) heading(title string) {
	d.add("**%s**\n\n", strings.ToUpper(title[:1])+title[1:])
}

// table writes rows.
func (d *document) table(head []string, rows [][]string) {
	if len(rows) == 0 {
		d.text("Not measured.")
		return
	}
	d.add("| %s |\n|---|%s\n", strings.Join(head, " | "), strings.Repeat("--:|", len(head)-1))
	for _, r := range rows {
		d.add("| %s |\n", strings.Join(r, " | "))
	}
	d.add("\n")
}

// eachPeer makes a row of each peer that has samples in a measure.
func (d *document) eachPeer(measure string, cases []string, cells func(peer string) []string) [][]string {
	var rows [][]string
	for _, peer := range d.order {
		if !d.has(measure, cases, peer) {
			continue
		}
		if found := cells(peer); found != nil {
			rows = append(rows, append([]string{peer}, found...))
		}
	}
	return rows
}

func (d *document) has(measure string, cases []string, peer string) bool {
	return slices.ContainsFunc(d.results.rows, func(r *row) bool {
		return r.Measure == measure && r.Peer == peer && slices.Contains(cases, r.Case)
	})
}

// grid is a table of peers by cases.
func (d *document) grid(measure string, cases []string, cell func(key) string) {
	cases = slices.DeleteFunc(slices.Clone(cases), func(name string) bool {
		return !slices.ContainsFunc(d.order, func(peer string) bool { return d.has(measure, []string{name}, peer) })
	})
	rows := d.eachPeer(measure, cases, func(peer string) []string {
		out := make([]string, 0, len(cases))
		for _, name := range cases {
			out = append(out, cell(key{Measure: measure, Case: name, Peer: peer}))
		}
		if strings.Join(out, "") == "" {
			return nil
		}
		return out
	})
	d.table(append([]string{""}, cases...), rows)
}

// ratios is a grid of ratios to the baseline, and what the baseline is.
func (d *document) ratios(measure, metric string, cases []string, format string) {
	d.grid(measure, cases, func(k key) string {
		k.Metric = metric
		if k.Peer == baseline {
			return single("1 = "+format, d.results.of(k).median())
		}
		return middle(d.results.ratios(k))
	})
}

// spread is a median and what it lies between.
func spread(format string, s samples) string {
	if s.empty() {
		return ""
	}
	median := fmt.Sprintf(format, s.median())
	least, most := fmt.Sprintf(format, s.least()), fmt.Sprintf(format, s.most())
	if least == most {
		return "**" + median + "**"
	}
	return fmt.Sprintf("**%s** (%s–%s)", median, least, most)
}

// middle is a median and what half of the rounds lie between.
func middle(s samples) string {
	if s.empty() {
		return ""
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", s.median(), s.quantile(0.25), s.quantile(0.75))
}

// complaints says who had errors where nobody should have any.
func (d *document) complaints(measure string, cases []string) {
	var found []string
	for _, name := range cases {
		for _, peer := range d.order {
			if n := d.results.of(key{measure, name, peer, "errors"}).sum(); n > 0 {
				found = append(found, fmt.Sprintf("%s (%s): %.0f", peer, name, n))
			}
		}
	}
	if len(found) == 0 {
		d.text("No request was without an answer.")
		return
	}
	d.text("Requests without an answer, in all rounds: %s.", strings.Join(found, "; "))
}

// plot draws a chart and shows it.
func (d *document) plot(name, title string, chart func(*results) *bars) {
	file := name + ".svg"
	drawn, err := chart(d.results).draw(title, filepath.Join(d.out, plotFolder, file))
	if err != nil {
		d.errs = append(d.errs, fmt.Errorf("plot %s: %w", name, err))
		return
	}
	if drawn {
		d.drawn = append(d.drawn, file)
		d.add("![%s](%s/%s)\n\n", title, plotFolder, file)
	}
}

// publish writes the document, the plots and the samples.
func (b *bench) publish(ctx context.Context, done []measure) error {
	d := &document{out: b.out, results: b.results}
	for _, p := range newPeers() {
		d.order = append(d.order, p.name)
	}
	b.introduce(ctx, d)
	for _, m := range done {
		d.add("## %s\n\n", m.title)
		m.write(d, b)
	}
	if len(b.notes) > 0 {
		d.add("## Notes\n\n")
		for _, n := range b.notes {
			d.add("- %s\n", strings.ReplaceAll(n, b.dir, "…"))
		}
		d.add("\n")
	}
	page := strings.TrimRight(d.page.String(), "\n") + "\n"
	err := os.WriteFile(filepath.Join(b.out, documentName), []byte(page), 0o644)
	return errors.Join(append(d.errs, err, b.results.save(filepath.Join(b.out, plotFolder, rawName)))...)
}

// introduce writes how it was measured, on what.
func (b *bench) introduce(ctx context.Context, d *document) {
	d.add("# Benchmarks\n\nWritten by `make bench`; do not edit.\n\n")
	if b.quick {
		d.text("**This was a quick run: it tests the program. The numbers mean nothing.**")
	}
	d.text(`All peers run on one machine, over loopback, with the same handlers, and the client shares the processors with them: the numbers compare servers,
they do not say what a machine can do. Each round measures all peers, one after the other, in another order each time; there are %d rounds unless it says
otherwise, after a warm-up that is not counted. **Bold** is the median of the rounds. What is in parentheses are the least and the most, and for ratios of speed the quartiles,
between which half of the rounds lie. A ratio is taken within a round: to %s, which is Fiber's built-in prefork. Where spreads overlap, peers do not differ by what can be seen here; "%s" is a second server
of the same kind, and shows how far apart equals come out.`, b.rounds, baseline, controlled)
	d.text(`Each peer has %d workers; those that are one process may use %d processors (GOMAXPROCS). No access logs. Otherwise they have their defaults, except for what
a chapter says, and for nginx: reuseport, no limit of requests per connection.`, b.workers, b.workers)
	d.text("To repeat it: `make bench`. It takes what is installed of wrk, nginx, puma and gunicorn, and needs none of them. All samples: [%s](%s/%s).", rawName, plotFolder, rawName)
	d.table([]string{"", ""}, b.machine(ctx))
}

func (b *bench) machine(ctx context.Context) [][]string {
	generator := "this program's client"
	if b.wrk != "" {
		generator = fmt.Sprintf("wrk %s with %d threads for plain HTTP under saturation; this program's client for the rest", printed(b.wrk, "-v")(ctx), wrkThreads)
	}
	rows := [][]string{
		{"date", b.began.UTC().Format("2006-01-02 15:04 UTC")},
		{"took", time.Since(b.began).Round(time.Second).String()},
		{"processor", fmt.Sprintf("%s, %d cores", processor(), runtime.NumCPU())},
		{"kernel", kernel()},
		{"Go", fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)},
		{"load", generator},
		{"work of 1 ms", fmt.Sprintf("%d rounds of xorshift", b.spin)},
	}
	for _, p := range b.peers {
		rows = append(rows, []string{p.name, p.version(ctx)})
	}
	if len(b.absent) > 0 {
		rows = append(rows, []string{"not installed, left out", missing(b.absent)})
	}
	if b.wrk == "" {
		rows = append(rows, []string{"not used", "wrk"})
	}
	return rows
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "?"
	}
	return "Linux " + strings.TrimSpace(string(text))
}

// bars is a chart of bars in groups, each with what it lies between.
type bars struct {
	groups []string
	series []string
	values map[string]map[string]samples // by series, group
	line   float64                       // drawn across, if not 0
	means  bool                          // bars are means, else medians
	middle bool                          // whiskers end at the quartiles, else at the least and the most
}

func newBars(groups, series []string) *bars {
	return &bars{groups: groups, series: series, values: make(map[string]map[string]samples)}
}

// fill asks for the samples of each bar, and leaves out what has none.
func (c *bars) fill(of func(group, series string) samples) {
	for _, s := range c.series {
		for _, g := range c.groups {
			if v := of(g, s); !v.empty() {
				if c.values[s] == nil {
					c.values[s] = make(map[string]samples)
				}
				c.values[s][g] = v
			}
		}
	}
	c.series = slices.DeleteFunc(slices.Clone(c.series), func(s string) bool { return c.values[s] == nil })
	c.groups = slices.DeleteFunc(slices.Clone(c.groups), func(g string) bool {
		return !slices.ContainsFunc(c.series, func(s string) bool { return c.values[s][g] != nil })
	})
}

func (c *bars) height(s samples) float64 {
	if c.means {
		return s.mean()
	}
	return s.median()
}

// ends are what the whisker of a bar lies between.
func (c *bars) ends(s samples) (low, high float64) {
	if c.middle {
		return s.quantile(0.25), s.quantile(0.75)
	}
	return s.least(), s.most()
}

// ratioBars shows ratios to the baseline.
func ratioBars(measure, metric string, cases, peers []string) func(*results) *bars {
	return func(r *results) *bars {
		chart := newBars(cases, peers)
		chart.line, chart.middle = 1, true
		chart.fill(func(group, peer string) samples { return r.ratios(key{measure, group, peer, metric}) })
		return chart
	}
}

// meanRatioBars shows means as ratios to the mean of the baseline.
func meanRatioBars(measure, metric string, cases, peers []string) func(*results) *bars {
	return func(r *results) *bars {
		chart := newBars(cases, peers)
		chart.line, chart.means, chart.middle = 1, true, true
		chart.fill(func(group, peer string) samples {
			base := r.of(key{measure, group, baseline, metric}).mean()
			v := r.of(key{measure, group, peer, metric})
			for i := range v {
				v[i] /= base
			}
			if math.IsNaN(base) {
				return nil
			}
			return v
		})
		return chart
	}
}

// valueBars shows values as they are.
func valueBars(measure, metric string, cases, peers []string) func(*results) *bars {
	return func(r *results) *bars {
		chart := newBars(cases, peers)
		chart.fill(func(group, peer string) samples { return r.of(key{measure, group, peer, metric}) })
		return chart
	}
}
