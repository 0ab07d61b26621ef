package steer

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

func TestShares(t *testing.T) {
	const half = Whole / 2
	for _, test := range []struct {
		open     []int
		expected float64
		want     []int
	}{
		{[]int{0, 0}, 1, []int{half, half}},
		{[]int{7, 7}, 0, []int{half, half}},
		{[]int{1, 0}, 1, []int{1024, Whole - 1024}},
		{[]int{1, 1, 0, 0}, 1, []int{512, 512, half - 512, half - 512}},
		{[]int{4, 2, 0, 2}, 0, []int{512, 512, Whole - 3*512, 512}},
		{[]int{8, 3, 2, 3}, 0, []int{512, 16384, Whole - 512 - 2*16384, 16384}},
		{[]int{60, 60, 0}, 1, []int{5461, 5462, Whole - 5461 - 5462}},
		{[]int{8, 24}, 0, []int{Whole - 1024, 1024}},
		{[]int{8, 25}, 0, []int{Whole - 8192, 8192}},
		{[]int{3, 1}, 100, []int{32133, Whole - 32133}},
		{[]int{5}, 1, []int{Whole}},
	} {
		assert.Equal(t, test.want, Shares(test.open, test.expected), "%v, %v expected", test.open, test.expected)
	}
}

func FuzzShares(f *testing.F) {
	f.Add([]byte{1, 2, 3}, 4.0)
	f.Fuzz(func(t *testing.T, counts []byte, expected float64) {
		if len(counts) == 0 || len(counts) > 32 || !(expected >= 0 && expected < 1e9) {
			t.Skip()
		}
		var open, indexes []int
		for i, c := range counts {
			open, indexes = append(open, int(c)), append(indexes, i)
		}
		shares := Shares(open, expected)
		sum := 0
		for i, s := range shares {
			if s < 0 {
				t.Fatalf("%v", shares)
			}
			if open[i] == slices.Max(open) && s > Whole/len(open)+1 {
				t.Fatalf("the fullest gets more than others: %v of %v", shares, open)
			}
			sum += s
		}
		if sum != Whole || !Near(shares, shares) {
			t.Fatalf("%d: %v", sum, shares)
		}
		if _, err := Program(indexes, shares); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNear(t *testing.T) {
	assert.True(t, Near(Equal(4), Equal(4)))
	assert.True(t, Near([]int{Whole/2 + Whole/17, Whole/2 - Whole/17}, Equal(2)))
	assert.False(t, Near([]int{Whole/2 + Whole/15, Whole/2 - Whole/15}, Equal(2)))
	assert.False(t, Near([]int{Whole, 0}, []int{Whole - 1, 1}))
	assert.False(t, Near(Equal(2), Equal(3)))
}

// TestProgram counts what the program chooses. The VM has no chance: the
// number is loaded from a packet instead.
func TestProgram(t *testing.T) {
	raw, err := Program([]int{4, 0, 2, 9}, []int{Whole / 2, 0, Whole / 4, Whole / 4})
	require.NoError(t, err)
	program, all := bpf.Disassemble(raw)
	require.True(t, all)
	require.Equal(t, bpf.LoadExtension{Num: bpf.ExtRand}, program[0])
	program[0] = bpf.LoadAbsolute{Off: 0, Size: 4}
	vm, err := bpf.NewVM(program)
	require.NoError(t, err)
	got := map[int]int{}
	for range 4000 {
		n := rand.Uint32()
		index, err := vm.Run([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		require.NoError(t, err)
		got[index]++
	}
	assert.InDelta(t, 2000, got[4], 200)
	assert.InDelta(t, 1000, got[2], 200)
	assert.InDelta(t, 1000, got[9], 200)
	assert.Len(t, got, 3)

	most := make([]int, 1024)
	for i := range most {
		most[i] = i
	}
	raw, err = Program(most, Equal(1024))
	require.NoError(t, err)
	assert.Less(t, len(raw), 4096, "the kernel's limit")
}

// TestSteered: two hundred connections that come one after the other, and
// stay, end up even, if the shares are renewed after every few.
func TestSteered(t *testing.T) {
	for range 200 {
		open := make([]int, 4)
		shares := Equal(4)
		for i := range 200 {
			if i%2 == 0 {
				shares = Shares(open, 2)
			}
			n, slot := rand.IntN(Whole), 0
			for n >= shares[slot] {
				n -= shares[slot]
				slot++
			}
			open[slot]++
		}
		require.LessOrEqual(t, slices.Max(open)-slices.Min(open), 4, "%v", open)
	}
}
