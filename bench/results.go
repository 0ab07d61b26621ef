package main

// The one model of what was measured: samples, one per round, by measure, case,
// peer and metric. Tables and plots are made of it.

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"time"
)

// key says what a sample is of.
type key struct {
	Measure string `json:"measure"`
	Case    string `json:"case"` // workload, number of connections, …
	Peer    string `json:"peer"`
	Metric  string `json:"metric"`
}

// row is a key and its samples, by round. A round that failed is not a number.
type row struct {
	key

	Samples samples
}

type samples []float64

// text is what a reader of the samples can use: four digits, and null for what
// is not a number.
func (s samples) text() json.RawMessage {
	out := []byte{'['}
	for i, v := range s {
		if i > 0 {
			out = append(out, ',')
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			out = append(out, "null"...)
			continue
		}
		out = fmt.Appendf(out, "%.4g", v)
	}
	return append(out, ']')
}

// results holds the rows in the order in which they came.
type results struct {
	mu   sync.Mutex
	rows []*row
	by   map[key]*row
}

func newResults() *results { return &results{by: make(map[key]*row)} }

func (r *results) add(k key, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.by[k]
	if found == nil {
		found = &row{key: k}
		r.by[k] = found
		r.rows = append(r.rows, found)
	}
	found.Samples = append(found.Samples, v)
}

// of returns the samples of k.
func (r *results) of(k key) samples {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.by[k]; found != nil {
		return slices.Clone(found.Samples)
	}
	return nil
}

// ratios returns the samples of k as ratios to those of the baseline in the
// same round.
func (r *results) ratios(k key) samples {
	mine := r.of(k)
	k.Peer = baseline
	theirs := r.of(k)
	var out samples
	for i := range min(len(mine), len(theirs)) {
		out = append(out, mine[i]/theirs[i])
	}
	return out
}

// numbers leaves out what is not a number, and sorts.
func (s samples) numbers() []float64 {
	out := slices.DeleteFunc(slices.Clone(s), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	slices.Sort(out)
	return out
}

// quantile is NaN if there is nothing.
func (s samples) quantile(q float64) float64 {
	n := s.numbers()
	if len(n) == 0 {
		return math.NaN()
	}
	at := q * float64(len(n)-1)
	low := int(at)
	high := min(low+1, len(n)-1)
	return n[low] + (n[high]-n[low])*(at-float64(low))
}

func (s samples) median() float64 { return s.quantile(0.5) }
func (s samples) least() float64  { return s.quantile(0) }
func (s samples) most() float64   { return s.quantile(1) }

func (s samples) sum() float64 {
	sum := 0.0
	for _, v := range s.numbers() {
		sum += v
	}
	return sum
}

func (s samples) mean() float64 {
	n := s.numbers()
	if len(n) == 0 {
		return math.NaN()
	}
	return s.sum() / float64(len(n))
}

// estimate is the geometric mean, and between what it lies with a confidence
// of 95 %, taking the samples' logarithms to be normal and ten or so of them.
func (s samples) estimate() (mean, low, high float64) {
	logs := s.numbers()
	for i, v := range logs {
		logs[i] = math.Log(v)
	}
	middle := samples(logs).mean()
	sum := 0.0
	for _, v := range logs {
		sum += (v - middle) * (v - middle)
	}
	n := float64(len(logs))
	margin := 0.0
	if n > 1 {
		margin = 2.26 * math.Sqrt(sum/(n-1)/n)
	}
	return math.Exp(middle), math.Exp(middle - margin), math.Exp(middle + margin)
}

// empty reports whether no round gave a number.
func (s samples) empty() bool { return len(s.numbers()) == 0 }

// save writes all samples.
func (r *results) save(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []byte("[\n")
	for i, found := range r.rows {
		line, err := json.Marshal(struct {
			key

			Samples json.RawMessage `json:"samples"`
		}{found.key, found.Samples.text()})
		if err != nil {
			return fmt.Errorf("samples of %v: %w", found.key, err)
		}
		out = append(out, line...)
		if i < len(r.rows)-1 {
			out = append(out, ',')
		}
		out = append(out, '\n')
	}
	return os.WriteFile(path, append(out, "]\n"...), 0o644)
}

// milliseconds is d as the tables have it.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func sortTimes(times []time.Time) { slices.SortFunc(times, time.Time.Compare) }
