//go:build race

package prefork_test

// raceEnabled says whether the tests run with the race detector.
const raceEnabled = true
