//go:build unix

package prefork_test

// Upgrades in place, with programs that are really different.

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	return startAppAt(t, path, append([]string{"TESTAPP_ADDR=127.0.0.1:0"}, env...)...)
}

func startAppAt(t *testing.T, path string, env ...string) *server {
	t.Helper()
	s := prepare(t, "", nil)
	s.cmd.Path, s.cmd.Args = path, []string{path}
	s.cmd.Env = append(s.cmd.Env, env...)
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
	return buildChanged(t, "other", map[string][2]string{"upgrade.go": {"const stateVersion = 1\n", "const stateVersion = 7\n"}})
}

// buildChanged builds a version of the library in which parts of files are replaced.
func buildChanged(t *testing.T, version string, changes map[string][2]string) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for name, change := range changes {
		source, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Contains(t, string(source), change[0])
		changed := filepath.Join(dir, filepath.Base(name))
		require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(source), change[0], change[1], 1)), 0o600))
		original, err := filepath.Abs(name)
		require.NoError(t, err)
		replace[original] = changed
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	overlay := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(overlay, b, 0o600))
	return buildWith(t, overlay, "-X main.version="+version)
}

// TestUpgradeKeepsWhatWasScaled, and the file of a unix socket, and the
// executable is found through a symbolic link as a deploy changes it.
func TestUpgradeKeepsWhatWasScaled(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	for _, version := range []string{"A", "B"} {
		install(t, build(t, version), filepath.Join(dir, version))
	}
	current := filepath.Join(dir, "current")
	require.NoError(t, os.Symlink("A", current))
	at := filepath.Join(dir, "s")
	s := startAppAt(t, current, "TESTAPP_MODE=unix", "TESTAPP_ADDR="+at)
	ask := func() string {
		conn, err := net.Dial("unix", at)
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		_, body := answer(t, conn)
		return body
	}
	assert.True(t, strings.HasPrefix(ask(), "A "))
	before, err := os.Stat(at)
	require.NoError(t, err)
	require.Equal(t, "<nil>", s.operate("scale 3"))
	s.readyPIDs(3)

	require.NoError(t, os.Symlink("B", current+".new"))
	require.NoError(t, os.Rename(current+".new", current))
	s.upgrade()
	assert.True(t, strings.HasPrefix(ask(), "B "))
	after, err := os.Stat(at)
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after))
	assert.Equal(t, "3", s.reply("children", `children ready=(\d+) size=3`)[1])
	s.stop()
	assert.NoFileExists(t, at)
}

// TestUpgradeWithASlotDown: a child that is not there is no obstacle, and
// comes back in the new program.
func TestUpgradeWithASlotDown(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path, "TESTAPP_INTERVAL=1h")
	pid := s.readyPIDs(2)[0]
	kill(t, pid, syscall.SIGKILL)
	s.await(`next child in 1h0m0s`)
	install(t, build(t, "B"), path)
	s.upgrade() // the reload fills the slot
	assert.Equal(t, "2", s.reply("children", `children ready=(\d+) size=2`)[1])
	assert.True(t, strings.HasPrefix(s.get("/"), "B "))
	s.stop()
}

// TestUpgradeToAnotherAddress: the new program serves there, and what the old
// one had is let go.
func TestUpgradeToAnotherAddress(t *testing.T) {
	t.Parallel()
	path, file := filepath.Join(t.TempDir(), "app"), filepath.Join(t.TempDir(), "addr")
	install(t, build(t, "A"), path)
	old, next := freeAddr(), freeAddr()
	require.NoError(t, os.WriteFile(file, []byte(old), 0o600))
	s := startApp(t, path, "TESTAPP_ADDR_FILE="+file)
	assert.Equal(t, old, s.addr)
	pids := s.readyPIDs(2)
	// The children of the reload would serve elsewhere already: they find no
	// listener of theirs, and are not ready.
	require.NoError(t, os.WriteFile(file, []byte(next), 0o600))
	_, err := s.in.WriteString("upgrade\n")
	require.NoError(t, err)
	s.await(`waits at Listen of app 0 on "tcp ` + regexp.QuoteMeta(next) + `"`)
	assert.Contains(t, pids, pidIn(s.get("/")))
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit())
}

func pidIn(body string) int {
	_, pid, _ := strings.Cut(body, " ")
	n, _ := strconv.Atoi(pid)
	return n
}

// TestUpgradeRefused: what cannot be taken over is said before anything happens.
func TestUpgradeRefused(t *testing.T) {
	t.Parallel()
	s := start(t, "branch", options{"enable_prefork": true, "Children": 1, "At": "operate", "Addr": freeAddr()})
	assert.Equal(t, "prefork: upgrade failed: the application has opened the listener itself; use Listen or NewListener", s.operate("upgrade"))
	s.await("operation is upgrade failed")
	assert.Equal(t, "<nil>", s.operate("reload"), "but it can be reloaded")
	s.stop()

	s = start(t, "two", options{"enable_prefork": true, "Children": 1, "At": "operate"})
	s.awaitN(`^EVENT \d+ listen`, 2)
	assert.Equal(t, "prefork: upgrade failed: another prefork server runs in this process", s.operate("upgrade"))
	s.stop()
}

// TestUpgradesOfARelativeLink: a deploy that changes a link that main was
// started through, by a relative path, again and again.
func TestUpgradesOfARelativeLink(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	versions := []string{"A", "B", "C"}
	for _, version := range versions {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o755))
		install(t, build(t, version), filepath.Join(dir, version, "app"))
	}
	current := filepath.Join(dir, "current")
	require.NoError(t, os.Symlink("A", current))
	s := prepare(t, "", nil)
	s.cmd.Path, s.cmd.Args, s.cmd.Dir = "./app", []string{"./app"}, current
	s.cmd.Env = append(s.cmd.Env, "TESTAPP_ADDR=127.0.0.1:0", "PWD="+current)
	s.launch().awaitListen()
	for _, version := range versions[1:] {
		require.NoError(t, os.Symlink(version, current+".new"))
		require.NoError(t, os.Rename(current+".new", current))
		s.upgrade()
		assert.True(t, strings.HasPrefix(s.get("/"), version+" "))
	}
	s.stop()
}

// TestEndOfAnUpgradeThatIsSlow: SIGTERM while the new main is on its way to
// Listen is heard there.
func TestEndOfAnUpgradeThatIsSlow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path)
	install(t, build(t, "slow", "-X main.slow=1s"), path)
	s.signal(syscall.SIGUSR2)
	s.await(`replacing the program of the master`)
	s.await(`EVENT \d+ slow`)
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit())
	s.await(`terminated: draining`)
}
