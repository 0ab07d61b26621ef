//go:build unix

package prefork_test

// Upgrades in place, with programs that are really different.

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// builds are the versions of internal/testapp that were made so far, by their
// flags: making one takes seconds.
var builds = struct {
	mu    sync.Mutex
	dir   string
	paths map[string]string
}{paths: map[string]string{}}

// build makes a version of internal/testapp.
func build(t *testing.T, version string, flags ...string) string {
	t.Helper()
	return buildWith(t, "", append(flags, "-X main.version="+version)...)
}

// buildWith is build with files that take the place of others.
func buildWith(t *testing.T, overlay string, flags ...string) string {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	link := strings.Join(flags, " ")
	if path, ok := builds.paths[link]; ok {
		return path
	}
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "prefork-builds") //nolint:usetesting // for all tests: TestMain removes it
		require.NoError(t, err)
		builds.dir = dir
	}
	path := filepath.Join(builds.dir, fmt.Sprintf("app-%d", len(builds.paths)))
	args := []string{"build", "-race=" + strconv.FormatBool(raceEnabled), "-o", path, "-ldflags", link}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	out, err := exec.Command("go", append(args, "./internal/testapp")...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	builds.paths[link] = path
	return path
}

// install puts a program at a path as a deploy does: beside it, then over it.
func install(t *testing.T, program, path string) {
	t.Helper()
	b, err := os.ReadFile(program)
	require.NoError(t, err)
	writeProgram(t, path, b)
}

// writeProgram writes without a descriptor that a process which is started
// meanwhile could inherit: the file would be busy.
func writeProgram(t *testing.T, path string, b []byte) {
	t.Helper()
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	require.NoError(t, os.WriteFile(path+".new", b, 0o755))
	require.NoError(t, os.Rename(path+".new", path))
}

// startApp starts the program at path, and waits until it listens.
func startApp(t *testing.T, path string, env ...string) *server {
	t.Helper()
	s := prepare(t, "", nil)
	s.cmd.Path, s.cmd.Args = path, []string{path}
	s.cmd.Env = append(append(s.cmd.Env, "TESTAPP_ADDR=127.0.0.1:0"), env...)
	s.launch().awaitListen()
	return s
}

// upgrade has the master upgraded, and waits until the next program listens.
func (s *server) upgrade() {
	s.t.Helper()
	n := len(s.matches(`^EVENT \d+ listen `))
	_, err := s.in.WriteString("upgrade\n")
	require.NoError(s.t, err)
	s.awaitN(`^EVENT \d+ listen `, n+1)
}

func (s *server) descriptors() int {
	s.t.Helper()
	count, err := strconv.Atoi(s.reply("status", `^EVENT \d+ status fds=(\d+)`)[1])
	require.NoError(s.t, err)
	return count
}

// TestUpgrades: ten, and no client notices.
func TestUpgrades(t *testing.T) {
	t.Parallel()
	versions := []string{build(t, "A"), build(t, "B", "-s")}
	for _, env := range [][]string{{}, {"TESTAPP_MODE=shared", "TESTAPP_LISTENER=new"}} {
		path := filepath.Join(t.TempDir(), "app")
		install(t, versions[0], path)
		s := startApp(t, path, env...)
		master := strconv.Itoa(s.cmd.Process.Pid)
		l := startLoad(t, s.addr, 64, 64)
		l.more(200)
		before := 0
		for i := 1; i <= 10; i++ {
			install(t, versions[i%2], path)
			s.upgrade()
			want := fmt.Sprintf("version=%s ", []string{"A", "B"}[i%2])
			heard := s.awaitN(`^EVENT (\d+) listen (\S+) (version=\S+ )`, i+1)[i]
			assert.Equal(t, []string{master, s.addr, want}, heard[1:])
			assert.Equal(t, master, s.get("/ppid"), "the children have the same parent")
			if i == 2 {
				before = s.descriptors()
			}
		}
		assert.LessOrEqual(t, s.descriptors(), before)
		l.more(200)
		l.clean()
		assert.True(t, strings.HasPrefix(s.get("/"), "A "))

		// It is a master like any other.
		pid, err := strconv.Atoi(strings.TrimPrefix(s.get("/"), "A "))
		require.NoError(t, err)
		kill(t, pid, syscall.SIGKILL)
		s.await(fmt.Sprintf(`EVENT \d+ exit \d %d code=-1 asked=false status=signal: killed`, pid))
		s.await(fmt.Sprintf(`replaces pid %d`, pid))
		s.stop()
		assert.Zero(t, zombies(s.cmd.Process.Pid))
	}
}

// TestUpgradeBySignal: SIGUSR2 is an upgrade.
func TestUpgradeBySignal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path)
	install(t, build(t, "B"), path)
	s.signal(syscall.SIGUSR2)
	s.await(`EVENT \d+ listen \S+ version=B`)
	assert.True(t, strings.HasPrefix(s.get("/"), "B "))
	s.signal(syscall.SIGHUP)
	s.await(`reloaded: generation 2`)
	s.stop()
}

// TestUpgradeThatFails: the old program goes on, whatever the new one is.
func TestUpgradeThatFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path)
	pids := s.readyPIDs(2)
	l := startLoad(t, s.addr, 8, 8)
	for _, broken := range []struct {
		name string
		make func()
		want string
	}{
		{"missing", func() { require.NoError(t, os.Remove(path)) }, "reload failed: stat .*no such file"},
		{"directory", func() { require.NoError(t, os.Mkdir(path, 0o755)) }, "reload failed: exec .*permission denied"},
		{"not executable", func() {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.WriteFile(path, []byte("x"), 0o644))
		}, "reload failed: exec .*permission denied"},
		{"not a program", func() { writeProgram(t, path, []byte("\x7fELF nonsense")) }, "reload failed: prefork: child did not start: slot 0: start .*exec format error"},
		{"ends at once", func() { install(t, build(t, "C", "-X main.fail=start"), path) }, `reload failed: prefork: child did not start: slot 0 pid \d+: exit status 9`},
		{"other state", func() { install(t, otherState(t), path) }, `reload failed: slot 0 pid \d+: the new executable takes over state of version 7, this one has version 1`},
	} {
		broken.make()
		assert.Regexp(t, broken.want, s.operate("upgrade"), broken.name)
	}
	l.clean()
	_, by := l.since(time.Time{}, time.Now())
	for body := range by {
		if pid, ok := strings.CutPrefix(body, "A "); ok {
			n, _ := strconv.Atoi(pid)
			assert.Contains(t, pids, n)
		} else {
			assert.True(t, strings.HasPrefix(body, "other "), body) // it was ready for a moment
		}
	}
	s.stop()
}

// otherState builds a version of the library that takes over another state.
func otherState(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source, err := os.ReadFile("upgrade.go")
	require.NoError(t, err)
	const line = "const stateVersion = 1\n"
	require.Contains(t, string(source), line)
	changed := filepath.Join(dir, "upgrade.go")
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(source), line, "const stateVersion = 7\n", 1)), 0o600))
	original, err := filepath.Abs("upgrade.go")
	require.NoError(t, err)
	overlay := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace":{%q:%q}}`, original, changed), 0o600))
	return buildWith(t, overlay, "-X main.version=other")
}
