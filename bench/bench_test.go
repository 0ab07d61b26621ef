package main

// The quick run as a test: every measure works, writes its part of the
// document, and leaves no process behind.

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary a peer when the run under test starts it as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestQuickRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it runs on Linux only")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out := t.TempDir()
	if err := run(ctx, []string{"-quick", "-out", out}); err != nil { // also when a process is left
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(out, documentName))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range plan() {
		_, chapter, found := strings.Cut(string(page), "## "+m.title+"\n")
		chapter, _, _ = strings.Cut(chapter, "\n## ")
		if !found || !strings.Contains(chapter, "\n| "+ours+" |") {
			t.Errorf("%s: no row for %s:\n%s", m.name, ours, chapter)
		}
	}
	for _, name := range []string{"throughput.svg", "kill.svg", rawName} {
		if info, err := os.Stat(filepath.Join(out, plotFolder, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSamples(t *testing.T) {
	s := samples{4, math.NaN(), 1, 3, math.Inf(1), 2}
	if got := []float64{s.median(), s.least(), s.most(), s.mean(), s.sum()}; !slices.Equal(got, []float64{2.5, 1, 4, 2.5, 10}) {
		t.Error(got)
	}
	if text := s.text(); string(text) != "[4,null,1,3,null,2]" {
		t.Errorf("%s", text)
	}
	if !(samples{math.NaN()}).empty() || !math.IsNaN(samples(nil).median()) {
		t.Error("nothing has a median")
	}
}

func TestEstimate(t *testing.T) {
	mean, low, high := samples{0.5, math.NaN(), 2}.estimate()
	if math.Abs(mean-1) > 1e-9 || low > 0.21 || low < 0.20 || math.Abs(low*high-1) > 1e-9 {
		t.Error(mean, low, high)
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := newResults()
	k := key{"measure", "case", "peer", "metric"}
	base := k
	base.Peer = baseline
	for i, v := range []float64{2, 6, 9} {
		r.add(k, v)
		r.add(base, float64(i+1))
	}
	if got := r.ratios(k); !slices.Equal(got, samples{2, 3, 3}) {
		t.Error(got)
	}
}
