package systemd

// The harness: the test binary runs itself again as a service, as the service
// manager would start it.

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	envProgram = "SYSTEMD_TEST_PROGRAM" // which program this process is
	envAsk     = "SYSTEMD_TEST_ASK"     // what it asks for, as JSON

	// patient is how long a test waits for what should come at once.
	patient = 30 * time.Second
)

func TestMain(m *testing.M) {
	if name := os.Getenv(envProgram); name != "" {
		runProgram(name)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// address is what a program asks Sockets for.
type address struct{ Network, Addr string }

// service makes the command for a program that gets files as the service
// manager passes them, with names as LISTEN_FDNAMES.
func service(t *testing.T, program string, ask []address, names string, files ...*os.File) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	// The pid is known only in the process itself.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0"`, exe)
	cmd.Env = append(os.Environ(), programEnv(t, program, ask)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)))
	if names != "" {
		cmd.Env = append(cmd.Env, "LISTEN_FDNAMES="+names)
	}
	for _, f := range files {
		require.NoError(t, unix.SetNonblock(int(f.Fd()), false)) // the service manager's default
	}
	cmd.ExtraFiles = files
	return cmd
}

func programEnv(t *testing.T, program string, ask []address) []string {
	t.Helper()
	asked, err := json.Marshal(ask)
	require.NoError(t, err)
	return []string{"GORACE=atexit_sleep_ms=0", envProgram + "=" + program, envAsk + "=" + string(asked)}
}

// output runs cmd and decodes what it prints.
func output[T any](t *testing.T, cmd *exec.Cmd) T {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	printed, err := cmd.Output()
	require.NoError(t, err, "%s%s", printed, &stderr)
	var result T
	require.NoError(t, json.Unmarshal(printed, &result), "%s%s", printed, &stderr)
	return result
}

// fileOf returns a descriptor of ln's, and closes ln.
func fileOf(t *testing.T, ln interface {
	net.Listener
	File() (*os.File, error)
},
) *os.File {
	t.Helper()
	f, err := ln.File()
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	require.NoError(t, ln.Close())
	return f
}

func listenTCP(t *testing.T, network, addr string) (*os.File, string) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil && network == "tcp6" {
		t.Skipf("no IPv6 here: %v", err)
	}
	require.NoError(t, err)
	return fileOf(t, ln.(*net.TCPListener)), ln.Addr().String()
}

func listenUnix(t *testing.T, path string) *os.File {
	t.Helper()
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	return fileOf(t, ln.(*net.UnixListener))
}
