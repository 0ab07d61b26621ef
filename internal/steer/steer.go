// Package steer says which socket of a SO_REUSEPORT group gets how many of the
// new connections, so that all have as many open ones, and writes the program
// that tells the kernel. It computes; who looks, and when, is the master's.
package steer

import (
	"slices"

	"golang.org/x/net/bpf"
)

// Whole is what shares sum up to.
const Whole = 1 << 16

// many connections below the mean are filled up less eagerly.
const many = 8

// Equal are equal shares for n sockets.
func Equal(n int) []int {
	shares := make([]int, n)
	for i := range shares {
		shares[i] = Whole*(i+1)/n - Whole*i/n
	}
	return shares
}

// Shares says how much of Whole each socket is to get of the new connections,
// of which some are expected before the next time it is asked: in proportion
// to how far its open ones are below a level. The level is the mean, at least:
// to give all to the one that has the fewest would overshoot. With as many
// expected that they lift it above the mean, it is the one at which they
// would make all sockets equal. One in 32 goes to any of them: if whoever
// serves the emptiest has just stopped, not everybody waits for it. One in
// four does if one is far below the mean: it has time to get there, and if all
// end unseen and come again at once, they are not all for that one.
func Shares(open []int, expected float64) []int {
	n := float64(len(open))
	sum := 0
	for _, o := range open {
		sum += o
	}
	mean := float64(sum) / n
	level := max(mean, fill(open, expected))
	missing := make([]float64, len(open))
	all := 0.0
	for i, o := range open {
		missing[i] = max(0, level-float64(o))
		all += missing[i]
	}
	shares := Equal(len(open))
	if all < 1e-9 { // they are equal, and none is expected
		return shares
	}
	anyone := Whole / 32.0
	if mean-float64(slices.Min(open)) > many {
		anyone = Whole / 4
	}
	before, upTo := 0, 0.0
	for i, m := range missing {
		upTo += m
		sum := (Whole-anyone)*min(1, upTo/all) + anyone*float64(i+1)/n
		shares[i] = int(sum+0.5) - before
		before += shares[i]
	}
	return shares
}

// fill says up to which level that many more would fill them all.
func fill(open []int, more float64) float64 {
	sorted := slices.Sorted(slices.Values(open))
	sum := more
	for i, o := range sorted {
		sum += float64(o)
		level := sum / float64(i+1)
		if i == len(sorted)-1 || level <= float64(sorted[i+1]) {
			return level
		}
	}
	return 0
}

// Near says whether it makes no difference to a connection whether a or b are
// the shares: who gets none is the same, and nobody's differ by more than an
// eighth of an equal share.
func Near(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if (a[i] == 0) != (b[i] == 0) || abs(a[i]-b[i]) > Whole/(8*len(a)) {
			return false
		}
	}
	return true
}

func abs(n int) int { return max(n, -n) }

// Program chooses a socket by chance: the one with index indexes[i] with the
// chance shares[i] / Whole.
func Program(indexes, shares []int) ([]bpf.RawInstruction, error) {
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: Whole - 1},
	}
	upTo, last := 0, 0
	for i, index := range indexes {
		if shares[i] == 0 {
			continue
		}
		upTo, last = upTo+shares[i], index
		if upTo < Whole {
			program = append(program,
				bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(upTo), SkipTrue: 1},
				bpf.RetConstant{Val: uint32(index)})
		}
	}
	return bpf.Assemble(append(program, bpf.RetConstant{Val: uint32(last)}))
}
