package main

// What /proc tells of processes: who is alive, what they use. Linux only.

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// alive reports whether pid is a process that has not ended; a zombie has.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	return ok && len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// cpuTime is how long the threads of pid have run.
func cpuTime(pid int) time.Duration {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0
	}
	var sum time.Duration
	for _, name := range files {
		text, err := os.ReadFile(filepath.Clean(name))
		if err != nil {
			continue // the thread has ended
		}
		if ns, err := strconv.ParseInt(firstField(string(text)), 10, 64); err == nil {
			sum += time.Duration(ns)
		}
	}
	return sum
}

func firstField(s string) string {
	if fields := strings.Fields(s); len(fields) > 0 {
		return fields[0]
	}
	return ""
}

// memory returns the resident and the proportional set of pid in MiB.
func memory(pid int) (rss, pss float64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		kb, err := strconv.ParseFloat(firstField(rest), 64)
		if err != nil {
			continue
		}
		switch name {
		case "Rss":
			rss = kb / 1024
		case "Pss":
			pss = kb / 1024
		}
	}
	return rss, pss
}

// descriptors is how many files pid has open.
func descriptors(pid int) int {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(names)
}

// connectionsOpened is how many TCP connections this machine has opened actively.
func connectionsOpened() int {
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "ActiveOpens" && i < len(fields) {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					return 0
				}
				return n
			}
		}
	}
	return 0
}

// marked returns the processes that have mark in their environment.
func marked(mark string) []int {
	names, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		env, err := os.ReadFile(filepath.Clean(name))
		if err != nil || !bytes.Contains(env, []byte(mark)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && pid != os.Getpid() && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// endAll kills pids and waits, for a second at most, until they are gone.
func endAll(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	waitGone(pids, time.Second)
}

// waitGone waits until no process of pids is left, and reports whether that came.
func waitGone(pids []int, limit time.Duration) bool {
	began := time.Now()
	for {
		left := false
		for _, pid := range pids {
			left = left || alive(pid)
		}
		if !left || time.Since(began) > limit {
			return !left
		}
		time.Sleep(500 * time.Microsecond)
	}
}
