package prefork

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/acme/autocert"
)

// lines is a PreforkLogger.
type lines []string

func (l *lines) Printf(format string, args ...any) { *l = append(*l, fmt.Sprintf(format, args...)) }

// TestListenConfigHasFibersFields fails when a newer Fiber adds a field.
func TestListenConfigHasFibersFields(t *testing.T) {
	ours, theirs := reflect.TypeFor[ListenConfig](), reflect.TypeFor[fiber.ListenConfig]()
	full := ListenConfig{
		GracefulContext:            context.Background(),
		PreforkLogger:              &lines{},
		TLSConfigFunc:              func(*tls.Config) {},
		TLSConfig:                  &tls.Config{MinVersion: tls.VersionTLS13},
		ListenerAddrFunc:           func(net.Addr) {},
		BeforeServeFunc:            func(*fiber.App) error { return nil },
		AutoCertManager:            &autocert.Manager{},
		ListenerNetwork:            "tcp6",
		CertFile:                   "cert",
		CertKeyFile:                "key",
		CertClientFile:             "client",
		ShutdownTimeout:            1,
		PreforkRecoverInterval:     2,
		PreforkShutdownGracePeriod: 3,
		UnixSocketFileMode:         4,
		TLSMinVersion:              5,
		DisableStartupMessage:      true,
		EnablePrefork:              true,
		PreforkRecoverThreshold:    6,
		EnablePrintRoutes:          true,
	}
	from, to := reflect.ValueOf(full), reflect.ValueOf(full.fiber())
	for i := range theirs.NumField() {
		want := theirs.Field(i)
		got, ok := ours.FieldByName(want.Name)
		require.True(t, ok, "fiber.ListenConfig.%s is missing", want.Name)
		assert.Equal(t, want.Type, got.Type, want.Name)
		assert.Equal(t, want.Tag, got.Tag, want.Name)
		value := from.FieldByName(want.Name)
		require.False(t, value.IsZero(), "this test does not set %s", want.Name)
		if value.Kind() == reflect.Func {
			assert.Equal(t, value.Pointer(), to.Field(i).Pointer(), want.Name)
		} else {
			assert.Equal(t, value.Interface(), to.Field(i).Interface(), want.Name)
		}
	}
}

func TestDefaults(t *testing.T) {
	cfg, err := ListenConfig{}.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, ListenConfig{
		ListenerNetwork: "tcp4", UnixSocketFileMode: 0o770, TLSMinVersion: tls.VersionTLS12, ShutdownTimeout: 10 * time.Second,
		RecoveryWindow: time.Minute, Children: runtime.GOMAXPROCS(0), ChildProcs: 1, ChildStartTimeout: time.Minute,
		DrainIdle: 5 * time.Second, ReportInterval: 250 * time.Millisecond, HangTimeout: 30 * time.Second, ReloadParallel: 1,
	}, cfg)

	cfg, err = ListenConfig{
		PreforkShutdownGracePeriod: 3 * time.Second, PreforkRecoverThreshold: 4, RecoveryWindow: -1, ChildStartTimeout: -1,
	}.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, 3*time.Second, cfg.ShutdownTimeout)
	assert.Equal(t, 4, cfg.MaxChildRecoveries)
	assert.Negative(t, cfg.RecoveryWindow)
	assert.Negative(t, cfg.ChildStartTimeout)

	cfg, err = ListenConfig{ShutdownTimeout: time.Second, PreforkShutdownGracePeriod: 1, MaxChildRecoveries: 2, PreforkRecoverThreshold: 4}.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, time.Second, cfg.ShutdownTimeout)
	assert.Equal(t, 2, cfg.MaxChildRecoveries)
}

// TestInvalidConfig expects an error that names the field and the value,
// before anything is started or bound.
func TestInvalidConfig(t *testing.T) {
	for _, test := range []struct {
		cfg  ListenConfig
		want string
	}{
		{ListenConfig{ListenerNetwork: "udp"}, `ListenerNetwork = "udp"`},
		{ListenConfig{TLSMinVersion: tls.VersionTLS11}, "TLSMinVersion = 0x302"},
		{ListenConfig{ShutdownTimeout: -time.Second}, "ShutdownTimeout = -1s"},
		{ListenConfig{PreforkShutdownGracePeriod: -1}, "PreforkShutdownGracePeriod = -1ns"},
		{ListenConfig{PreforkRecoverInterval: -1}, "PreforkRecoverInterval = -1ns"},
		{ListenConfig{PreforkRecoverThreshold: -1}, "PreforkRecoverThreshold = -1"},
		{ListenConfig{MaxChildRecoveries: -2}, "MaxChildRecoveries = -2"},
		{ListenConfig{Children: -3}, "Children = -3"},
		{ListenConfig{Children: 100000}, "Children = 100000"},
		{ListenConfig{ChildProcs: -4}, "ChildProcs = -4"},
		{ListenConfig{ListenerMode: 9}, "ListenerMode = 9"},
		{ListenConfig{Steering: 2}, "Steering = 2"},
		{ListenConfig{ListenerMode: ListenerModeShared, DisableReuseportFallback: true}, "ListenerMode = shared"},
		{ListenConfig{ListenerMode: ListenerModeReuseport, ListenerNetwork: "unix"}, "ListenerMode = reuseport"},
		{ListenConfig{ReportInterval: -1}, "ReportInterval = -1ns"},
		{ListenConfig{ReportInterval: time.Millisecond}, "ReportInterval = 1ms"},
		{ListenConfig{HangTimeout: 750 * time.Millisecond}, "HangTimeout = 750ms"},
		{ListenConfig{ReloadParallel: -1}, "ReloadParallel = -1"},
		{ListenConfig{ChildMaxRequests: -1}, "ChildMaxRequests = -1"},
		{ListenConfig{ChildMaxLifetime: -1}, "ChildMaxLifetime = -1ns"},
		{ListenConfig{ChildMaxRSS: -1}, "ChildMaxRSS = -1"},
		{ListenConfig{ChildCredential: Credential{User: "nobody-of-that-name"}}, `ChildCredential.User = "nobody-of-that-name"`},
		{ListenConfig{ChildCredential: Credential{User: "4000000001"}}, `ChildCredential.User = "4000000001"`},
		{ListenConfig{ChildCredential: Credential{User: "x y", Group: "1"}}, `ChildCredential.User = "x y"`},
		{ListenConfig{ChildCredential: Credential{Group: "no-group-of-that-name"}}, `ChildCredential.Group = "no-group-of-that-name"`},
		{ListenConfig{CertFile: "cert.pem"}, `CertKeyFile = ""`},
		{ListenConfig{CertKeyFile: "key.pem"}, `CertFile = ""`},
		{ListenConfig{CertClientFile: "ca.pem"}, `CertClientFile = "ca.pem"`},
	} {
		test.cfg.EnablePrefork = true
		err := New().Listen("127.0.0.1:0", test.cfg)
		require.ErrorIs(t, err, ErrInvalidConfig, test.want)
		require.ErrorContains(t, err, test.want)
	}
	require.ErrorIs(t, New().Listener(nil, ListenConfig{EnablePrefork: true}), ErrInvalidConfig)
	require.ErrorIs(t, New().Listener(nil, ListenConfig{EnablePrefork: true, Children: -1}), ErrInvalidConfig)
	_, err := NewListener("udp", ":0")
	require.ErrorIs(t, err, ErrInvalidConfig)
	require.ErrorContains(t, err, `network = "udp"`)
}

func TestTLSFilesAreReadBeforeAnythingStarts(t *testing.T) {
	cfg := ListenConfig{EnablePrefork: true, CertFile: "no-cert.pem", CertKeyFile: "no-key.pem"}
	err := New().Listen("127.0.0.1:0", cfg)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "no-cert.pem")

	cfg.AutoCertManager = &autocert.Manager{}
	require.ErrorIs(t, New().Listen("127.0.0.1:0", cfg), fiber.ErrAutoCertWithCertFile)

	cfg = ListenConfig{EnablePrefork: true, AutoCertManager: &autocert.Manager{}, CertClientFile: "no-ca.pem"}
	require.ErrorIs(t, New().Listen("127.0.0.1:0", cfg), os.ErrNotExist)
	cfg.CertClientFile = "listen_test.go"
	require.ErrorIs(t, New().Listen("127.0.0.1:0", cfg), ErrInvalidConfig)
}

func TestListenerModeString(t *testing.T) {
	assert.Equal(t, "auto reuseport shared ListenerMode(7)",
		fmt.Sprint(ListenerModeAuto, " ", ListenerModeReuseport, " ", ListenerModeShared, " ", ListenerMode(7)))
}

// TestWithoutPrefork: everything is Fiber's then.
func TestWithoutPrefork(t *testing.T) {
	for _, serve := range []func(*App, net.Listener) error{
		func(a *App, ln net.Listener) error { return a.Listener(ln) },
		func(a *App, ln net.Listener) error {
			return a.Listener(ln, ListenConfig{DisableStartupMessage: true, Children: -1})
		},
	} {
		app := New()
		app.Get("/", func(c fiber.Ctx) error { return c.SendString("alone") })
		ln, err := NewListener("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listening := make(chan fiber.ListenData, 1)
		app.Hooks().OnListen(func(d fiber.ListenData) error { listening <- d; return nil })
		returned := make(chan error, 1)
		go func() { returned <- serve(app, ln) }()
		data := <-listening
		assert.False(t, data.Prefork)
		assert.Empty(t, app.Children())
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + ln.Addr().String())
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, app.Shutdown())
		require.NoError(t, <-returned)
	}
	assert.False(t, IsChild())
}

func TestMountedAppMayBeOurs(t *testing.T) {
	app, sub := New(), New()
	sub.Get("/x", func(c fiber.Ctx) error { return nil })
	app.Use("/sub", sub)
	assert.Equal(t, "/sub", sub.MountPath())
}

func TestNewListenerThatNobodyServes(t *testing.T) {
	ln, err := NewListener("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.NoError(t, ln.Close())
	_, err = ln.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	again, err := NewListener("tcp", ln.Addr().String())
	require.NoError(t, err, "the port is free")
	require.NoError(t, again.Close())
	err = New().Listener(again, ListenConfig{EnablePrefork: true})
	require.ErrorIs(t, err, net.ErrClosed)
}
