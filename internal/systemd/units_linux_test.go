package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUnits asks systemd what it thinks of the units in deploy/systemd.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	const app = "ExecStart=/usr/local/bin/app\n"
	dir := t.TempDir()
	args := []string{"verify", "--man=no", "--recursive-errors=no"}
	for _, name := range []string{"prefork-app.service", "prefork-app.socket"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", name))
		require.NoError(t, err)
		unit := string(b)
		if strings.HasSuffix(name, ".service") {
			require.Contains(t, unit, app)
			// What is run has to exist.
			unit = strings.NewReplacer(app, "ExecStart=/bin/true\n", "=/bin/kill ", "=/bin/true ").Replace(unit)
		}
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(unit), 0o600))
		args = append(args, path)
	}
	out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "prefork-app", "what it does not know is a warning only")
}
