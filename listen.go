package prefork

// How a server is asked for: ListenConfig, Listen, Listener, NewListener, and
// the TLS that goes around a listener. What happens then is in prefork.go for
// the master and in child.go for a child.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v3"
	"golang.org/x/crypto/acme/autocert"

	"github.com/fiber-prefork/prefork/internal/socket"
)

// ListenerMode says how the children share the port.
type ListenerMode int

const (
	// ListenerModeAuto takes a listener per child where the kernel spreads
	// connections over them, else one for all.
	ListenerModeAuto ListenerMode = iota
	// ListenerModeReuseport takes a listener per child (SO_REUSEPORT).
	ListenerModeReuseport
	// ListenerModeShared takes one listener for all children.
	ListenerModeShared
)

// String returns "auto", "reuseport" or "shared".
func (m ListenerMode) String() string {
	switch m {
	case ListenerModeAuto:
		return "auto"
	case ListenerModeReuseport:
		return "reuseport"
	case ListenerModeShared:
		return "shared"
	default:
		return fmt.Sprintf("ListenerMode(%d)", int(m))
	}
}

// Steering says who chooses the child that gets a new connection in
// ListenerModeReuseport.
type Steering int

const (
	// SteeringAuto gives new connections to the children that have the fewest
	// open ones, where the kernel can be told to: on Linux.
	SteeringAuto Steering = iota
	// SteeringOff leaves it to the kernel, which goes by a hash of the addresses.
	SteeringOff
)

// String returns "auto" or "off".
func (s Steering) String() string {
	switch s {
	case SteeringAuto:
		return "auto"
	case SteeringOff:
		return "off"
	default:
		return fmt.Sprintf("Steering(%d)", int(s))
	}
}

// ListenConfig is fiber.ListenConfig with every field of it, and more. The
// fields that Fiber has keep Fiber's meaning; what is said of them here is
// what prefork adds. With EnablePrefork false the others have no effect.
type ListenConfig struct {
	// GracefulContext ends the server when it is done: see App.Shutdown.
	//
	// Default: nil
	GracefulContext context.Context `json:"graceful_context"` //nolint:containedctx // Fiber's field.

	// PreforkLogger receives the log lines of the master and the children.
	//
	// Default: Fiber's log package
	PreforkLogger fiber.PreforkLogger `json:"prefork_logger"`

	// TLSConfigFunc customizes the tls.Config made of the fields below. It
	// runs in the master and in each child.
	//
	// Default: nil
	TLSConfigFunc func(tlsConfig *tls.Config) `json:"tls_config_func"`

	// TLSConfig is cloned and used instead of the other TLS fields.
	//
	// Default: nil
	TLSConfig *tls.Config `json:"tls_config"`

	// ListenerAddrFunc gets the address that was bound, port 0 resolved. It
	// runs in the master before the first child starts, and in each child.
	//
	// Default: nil
	ListenerAddrFunc func(addr net.Addr) `json:"listener_addr_func"`

	// BeforeServeFunc runs in each child before it is ready, and in the
	// master when all children are. An error in a child ends that child, in
	// the master the server.
	//
	// Default: nil
	BeforeServeFunc func(app *fiber.App) error `json:"before_serve_func"`

	// AutoCertManager gets certificates by ACME. It needs a Cache that all
	// children can reach, such as autocert.DirCache: a challenge may arrive
	// at another child than the one that asked for it.
	//
	// Default: nil
	AutoCertManager *autocert.Manager `json:"auto_cert_manager"`

	// ListenerNetwork is "tcp" (IPv4 and IPv6), "tcp4", "tcp6" or "unix".
	//
	// Default: "tcp4"
	ListenerNetwork string `json:"listener_network"`

	// CertFile is the path of a certificate in PEM. Together with CertKeyFile
	// it turns TLS on.
	//
	// Default: ""
	CertFile string `json:"cert_file"`

	// CertKeyFile is the path of the certificate's private key in PEM.
	//
	// Default: ""
	CertKeyFile string `json:"cert_key_file"`

	// CertClientFile is the path of the CA bundle that client certificates
	// are verified against: it turns mutual TLS on.
	//
	// Default: ""
	CertClientFile string `json:"cert_client_file"`

	// ShutdownTimeout is how long a drain may take before the children that
	// are left are killed, unless Shutdown was called with a deadline.
	//
	// Default: 0, which means PreforkShutdownGracePeriod, or 10 s if that is 0 too
	ShutdownTimeout time.Duration `json:"shutdown_timeout"`

	// PreforkRecoverInterval is the least delay before a child that died is
	// replaced.
	//
	// Default: 0 (the first recovery is immediate, later ones back off)
	PreforkRecoverInterval time.Duration `json:"prefork_recover_interval"`

	// PreforkShutdownGracePeriod is the drain deadline when ShutdownTimeout is 0.
	//
	// Default: 0
	PreforkShutdownGracePeriod time.Duration `json:"prefork_shutdown_grace_period"`

	// UnixSocketFileMode is set on the file of a unix socket.
	//
	// Default: 0770
	UnixSocketFileMode os.FileMode `json:"unix_socket_file_mode"`

	// TLSMinVersion is tls.VersionTLS12 or tls.VersionTLS13.
	//
	// Default: tls.VersionTLS12
	TLSMinVersion uint16 `json:"tls_min_version"`

	// DisableStartupMessage leaves out the banner.
	//
	// Default: false
	DisableStartupMessage bool `json:"disable_startup_message"`

	// EnablePrefork starts children. Without it every call goes to Fiber as
	// it is.
	//
	// Default: false
	EnablePrefork bool `json:"enable_prefork"`

	// PreforkRecoverThreshold is used as MaxChildRecoveries when that is 0.
	//
	// Default: 0
	PreforkRecoverThreshold int `json:"prefork_recover_threshold"`

	// EnablePrintRoutes prints the routes, in the master.
	//
	// Default: false
	EnablePrintRoutes bool `json:"enable_print_routes"`

	// DisableReuseportFallback makes Listen fail with
	// ErrReuseportUnsupported where one listener for all children would be
	// used instead of one for each: also for a unix socket, and for a
	// listener that the application has opened itself.
	//
	// Default: false
	DisableReuseportFallback bool `json:"disable_reuseport_fallback"`

	// DisableChildRecovery drains the rest and ends Listen with
	// ErrChildExited when a child ends without having been asked to.
	//
	// Default: false
	DisableChildRecovery bool `json:"disable_child_recovery"`

	// MaxChildRecoveries is how many recoveries a slot has before the rest is
	// drained and Listen ends with ErrRecoveryLimit. 0 means
	// PreforkRecoverThreshold, and no limit if that is 0 too.
	//
	// Default: 0
	MaxChildRecoveries int `json:"max_child_recoveries"`

	// RecoveryWindow is how long a child stays up, from ready on, to wipe its
	// slot's count of recoveries and backoff. Negative means never.
	//
	// Default: 1 * time.Minute
	RecoveryWindow time.Duration `json:"recovery_window"`

	// Children is the number of slots, and so of children.
	//
	// Default: runtime.GOMAXPROCS(0)
	Children int `json:"children"`

	// ChildProcs is GOMAXPROCS inside a child.
	//
	// Default: 1
	ChildProcs int `json:"child_procs"`

	// ChildStartTimeout is how long a child may take to become ready before
	// it is killed. While the server starts that ends Listen with
	// ErrChildStart; later it counts as a death. Negative means no limit.
	//
	// Default: 1 * time.Minute
	ChildStartTimeout time.Duration `json:"child_start_timeout"`

	// ListenerMode forces how the children share the port.
	//
	// Default: ListenerModeAuto
	ListenerMode ListenerMode `json:"listener_mode"`

	// Steering says who chooses the child that gets a new connection. It turns
	// itself off, with a warning, where the kernel refuses.
	//
	// Default: SteeringAuto
	Steering Steering `json:"steering"`

	// DisableSignals leaves all signals to the application, in the master and
	// in the children: see docs/signals.md for what they do else.
	//
	// Default: false
	DisableSignals bool `json:"disable_signals"`

	// DrainIdle is how long a draining child leaves a connection open that is
	// not used, so that a client's next request on it is answered, with
	// "Connection: close", and does not meet a connection that was just
	// closed. It is counted from the last use of the connection (where the
	// system does not tell: from the beginning of the drain), and ends with
	// ShutdownTimeout. Negative means that idle connections are closed at once.
	//
	// Default: 5 * time.Second
	DrainIdle time.Duration `json:"drain_idle"`

	// ReportInterval is how often each child tells the master that it lives.
	// One that is three reports late is covered: other children accept its
	// connections too, until it reports again. At least 10 ms.
	//
	// Default: 250 * time.Millisecond
	ReportInterval time.Duration `json:"report_interval"`

	// HangTimeout is how long a child may report nothing before it is ended,
	// with SIGABRT, so that Go prints its goroutines, then with SIGKILL, and
	// replaced as one that died. More than three times ReportInterval; negative
	// means never.
	//
	// Default: 30 * time.Second
	HangTimeout time.Duration `json:"hang_timeout"`

	// ReloadParallel is how many new children of a reload start at a time. The
	// old ones drain when they are replaced, and are not waited for.
	//
	// Default: 1
	ReloadParallel int `json:"reload_parallel"`

	// ReloadRollback makes a reload that fails put children of the version
	// before back into the slots that had got a new one.
	//
	// Default: false
	ReloadRollback bool `json:"reload_rollback"`

	// ChildCredential is whose rights the children have. The master binds,
	// and needs root; the children get no supplementary groups.
	//
	// Default: the master's
	ChildCredential Credential `json:"child_credential"`

	// ChildMaxRequests is how many requests a child answers before it is
	// recycled: replaced by a new one, which is ready before the old one
	// drains. One child after another is, never two at once, and to spread
	// them each does it up to a tenth early. The count comes with the child's
	// reports, so that it may answer some more. 0 means no limit.
	//
	// Default: 0
	ChildMaxRequests int `json:"child_max_requests"`

	// ChildMaxLifetime is how long a child serves before it is recycled, see
	// ChildMaxRequests: 1 s at least. 0 means no limit.
	//
	// Default: 0
	ChildMaxLifetime time.Duration `json:"child_max_lifetime"`

	// ChildMaxRSS is how much resident memory, in bytes, a child may have
	// before it is recycled, see ChildMaxRequests. It is looked at once a
	// second, on Linux only. 0 means no limit.
	//
	// Default: 0
	ChildMaxRSS int64 `json:"child_max_rss"`
}

// Credential is a user and a group, each by name or by number.
type Credential struct {
	// User is whom the process belongs to; "" for the same as the master.
	User string `json:"user"`
	// Group is its only group; "" for the user's own.
	Group string `json:"group"`
}

// fiber returns the fields that Fiber has.
func (cfg *ListenConfig) fiber() fiber.ListenConfig {
	return fiber.ListenConfig{
		GracefulContext:            cfg.GracefulContext,
		PreforkLogger:              cfg.PreforkLogger,
		TLSConfigFunc:              cfg.TLSConfigFunc,
		TLSConfig:                  cfg.TLSConfig,
		ListenerAddrFunc:           cfg.ListenerAddrFunc,
		BeforeServeFunc:            cfg.BeforeServeFunc,
		AutoCertManager:            cfg.AutoCertManager,
		ListenerNetwork:            cfg.ListenerNetwork,
		CertFile:                   cfg.CertFile,
		CertKeyFile:                cfg.CertKeyFile,
		CertClientFile:             cfg.CertClientFile,
		ShutdownTimeout:            cfg.ShutdownTimeout,
		PreforkRecoverInterval:     cfg.PreforkRecoverInterval,
		PreforkShutdownGracePeriod: cfg.PreforkShutdownGracePeriod,
		UnixSocketFileMode:         cfg.UnixSocketFileMode,
		TLSMinVersion:              cfg.TLSMinVersion,
		DisableStartupMessage:      cfg.DisableStartupMessage,
		EnablePrefork:              cfg.EnablePrefork,
		PreforkRecoverThreshold:    cfg.PreforkRecoverThreshold,
		EnablePrintRoutes:          cfg.EnablePrintRoutes,
	}
}

// withDefaults checks every field and returns a copy in which none that has a
// default is left at zero.
func (cfg ListenConfig) withDefaults() (ListenConfig, error) {
	if cfg.PreforkShutdownGracePeriod < 0 { // before it is used for another field
		return cfg, invalid("PreforkShutdownGracePeriod", cfg.PreforkShutdownGracePeriod, "must not be negative")
	}
	if cfg.PreforkRecoverThreshold < 0 {
		return cfg, invalid("PreforkRecoverThreshold", cfg.PreforkRecoverThreshold, "must not be negative")
	}
	if cfg.ListenerNetwork == "" {
		cfg.ListenerNetwork = fiber.NetworkTCP4
	}
	if cfg.UnixSocketFileMode == 0 {
		cfg.UnixSocketFileMode = 0o770
	}
	if cfg.TLSMinVersion == 0 {
		cfg.TLSMinVersion = tls.VersionTLS12
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = cfg.PreforkShutdownGracePeriod
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = 10 * time.Second
	}
	if cfg.MaxChildRecoveries == 0 {
		cfg.MaxChildRecoveries = cfg.PreforkRecoverThreshold
	}
	if cfg.RecoveryWindow == 0 {
		cfg.RecoveryWindow = time.Minute
	}
	if cfg.Children == 0 {
		cfg.Children = runtime.GOMAXPROCS(0)
	}
	if cfg.ChildProcs == 0 {
		cfg.ChildProcs = 1
	}
	if cfg.ChildStartTimeout == 0 {
		cfg.ChildStartTimeout = time.Minute
	}
	if cfg.DrainIdle == 0 {
		cfg.DrainIdle = 5 * time.Second
	}
	if cfg.ReportInterval == 0 {
		cfg.ReportInterval = 250 * time.Millisecond
	}
	if cfg.HangTimeout == 0 {
		cfg.HangTimeout = max(30*time.Second, 4*cfg.ReportInterval)
	}
	if cfg.ReloadParallel == 0 {
		cfg.ReloadParallel = 1
	}
	err := cfg.validate()
	return cfg, err
}

const (
	maxChildren = 1024 // far above any machine's cores: a typo, not a wish

	maxChildProcs = 1 << 16

	minReportInterval = 10 * time.Millisecond
	maxReportInterval = time.Hour
	lateReports       = 3 // that are missing make a child a silent one
)

// validate checks a config that has its defaults.
func (cfg *ListenConfig) validate() error {
	switch cfg.ListenerNetwork {
	case fiber.NetworkTCP, fiber.NetworkTCP4, fiber.NetworkTCP6, fiber.NetworkUnix:
	default:
		return invalid("ListenerNetwork", fmt.Sprintf("%q", cfg.ListenerNetwork), "want tcp, tcp4, tcp6 or unix")
	}
	switch {
	case cfg.TLSConfig == nil && cfg.TLSMinVersion != tls.VersionTLS12 && cfg.TLSMinVersion != tls.VersionTLS13:
		return invalid("TLSMinVersion", fmt.Sprintf("%#x", cfg.TLSMinVersion), "want tls.VersionTLS12 or tls.VersionTLS13")
	case cfg.ShutdownTimeout < 0:
		return invalid("ShutdownTimeout", cfg.ShutdownTimeout, "must not be negative")
	case cfg.PreforkRecoverInterval < 0:
		return invalid("PreforkRecoverInterval", cfg.PreforkRecoverInterval, "must not be negative")
	case cfg.MaxChildRecoveries < 0:
		return invalid("MaxChildRecoveries", cfg.MaxChildRecoveries, "must not be negative")
	case cfg.Children < 0 || cfg.Children > maxChildren:
		return invalid("Children", cfg.Children, fmt.Sprintf("want 0 to %d", maxChildren))
	case cfg.ChildProcs < 0 || cfg.ChildProcs > maxChildProcs:
		return invalid("ChildProcs", cfg.ChildProcs, fmt.Sprintf("want 0 to %d", maxChildProcs))
	case cfg.ListenerMode < ListenerModeAuto || cfg.ListenerMode > ListenerModeShared:
		return invalid("ListenerMode", int(cfg.ListenerMode), "want ListenerModeAuto, ListenerModeReuseport or ListenerModeShared")
	case cfg.ListenerMode == ListenerModeShared && cfg.DisableReuseportFallback:
		return invalid("ListenerMode", cfg.ListenerMode, "contradicts DisableReuseportFallback")
	case cfg.ListenerMode == ListenerModeReuseport && cfg.ListenerNetwork == fiber.NetworkUnix:
		return invalid("ListenerMode", cfg.ListenerMode, "unix sockets are always shared")
	case cfg.Steering < SteeringAuto || cfg.Steering > SteeringOff:
		return invalid("Steering", int(cfg.Steering), "want SteeringAuto or SteeringOff")
	case cfg.ReportInterval < minReportInterval || cfg.ReportInterval > maxReportInterval:
		return invalid("ReportInterval", cfg.ReportInterval, fmt.Sprintf("want %v to %v", minReportInterval, maxReportInterval))
	case cfg.HangTimeout >= 0 && cfg.HangTimeout <= lateReports*cfg.ReportInterval:
		return invalid("HangTimeout", cfg.HangTimeout, fmt.Sprintf("must be more than %d times ReportInterval (%v), or negative", lateReports, cfg.ReportInterval))
	case cfg.ReloadParallel < 0:
		return invalid("ReloadParallel", cfg.ReloadParallel, "must not be negative")
	case cfg.ChildMaxRequests < 0:
		return invalid("ChildMaxRequests", cfg.ChildMaxRequests, "must not be negative")
	case cfg.ChildMaxLifetime != 0 && cfg.ChildMaxLifetime < time.Second:
		return invalid("ChildMaxLifetime", cfg.ChildMaxLifetime, "want 0, or 1s and more")
	case cfg.ChildMaxRSS < 0:
		return invalid("ChildMaxRSS", cfg.ChildMaxRSS, "must not be negative")
	case cfg.ChildMaxRSS > 0 && runtime.GOOS != "linux":
		return invalid("ChildMaxRSS", cfg.ChildMaxRSS, "resident memory is known on Linux only")
	}
	if here.inherited != nil {
		return nil // who is not root any more need not know of whom there are
	}
	_, err := lookUp(cfg.ChildCredential)
	return err
}

func (cfg *ListenConfig) log() logger { return logger{custom: cfg.PreforkLogger} }

// tlsConfig makes what Fiber would make of the TLS fields: nil without TLS.
func (cfg *ListenConfig) tlsConfig(app *fiber.App) (*tls.Config, error) {
	if cfg.TLSConfig != nil {
		if cfg.CertFile != "" || cfg.CertKeyFile != "" || cfg.CertClientFile != "" || cfg.AutoCertManager != nil || cfg.TLSConfigFunc != nil {
			cfg.log().warnf("TLSConfig is set: CertFile, CertKeyFile, CertClientFile, AutoCertManager and TLSConfigFunc are ignored")
		}
		return cfg.TLSConfig.Clone(), nil
	}
	var config *tls.Config
	switch {
	case cfg.AutoCertManager != nil && (cfg.CertFile != "" || cfg.CertKeyFile != ""):
		return nil, fiber.ErrAutoCertWithCertFile
	case cfg.CertFile != "" && cfg.CertKeyFile != "":
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.CertKeyFile)
		if err != nil {
			return nil, fmt.Errorf("prefork: tls: load key pair from CertFile %q and CertKeyFile %q: %w", cfg.CertFile, cfg.CertKeyFile, err)
		}
		handler := &fiber.TLSHandler{}
		app.SetTLSHandler(handler)
		config = &tls.Config{
			MinVersion:     cfg.TLSMinVersion,
			Certificates:   []tls.Certificate{cert},
			GetCertificate: handler.GetClientInfo,
			// Nobody is asked for a certificate when a TLS 1.3 session is resumed.
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				if hello.ServerName == "" {
					return nil, nil //nolint:nilnil // the config is this one
				}
				_, err := handler.GetClientInfo(hello)
				return nil, err
			},
		}
	case cfg.CertFile != "":
		return nil, invalid("CertKeyFile", `""`, fmt.Sprintf("CertFile is %q: TLS needs both", cfg.CertFile))
	case cfg.CertKeyFile != "":
		return nil, invalid("CertFile", `""`, fmt.Sprintf("CertKeyFile is %q: TLS needs both", cfg.CertKeyFile))
	case cfg.AutoCertManager != nil:
		config = &tls.Config{
			MinVersion:     cfg.TLSMinVersion,
			GetCertificate: cfg.AutoCertManager.GetCertificate,
			NextProtos:     []string{"http/1.1", "acme-tls/1"},
		}
	case cfg.CertClientFile != "":
		return nil, invalid("CertClientFile", fmt.Sprintf("%q", cfg.CertClientFile), "client certificates need TLS: CertFile and CertKeyFile, or AutoCertManager")
	default:
		return nil, nil //nolint:nilnil // no TLS is neither a config nor a failure
	}
	if cfg.CertClientFile != "" {
		pem, err := os.ReadFile(filepath.Clean(cfg.CertClientFile))
		if err != nil {
			return nil, fmt.Errorf("prefork: tls: read CertClientFile: %w", err)
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("CertClientFile", fmt.Sprintf("%q", cfg.CertClientFile), "no certificate in it")
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if cfg.TLSConfigFunc != nil {
		cfg.TLSConfigFunc(config)
	}
	return config, nil
}

// Listen serves HTTP on addr, as fiber.App.Listen does. With EnablePrefork it
// binds addr in the master, or takes the socket that systemd has passed for
// it, starts the children and supervises them; in a
// child it serves what the master has bound. It returns when the server has
// ended and every request that was accepted is answered or, at the drain
// deadline, cut off: nil if it was asked to end (Shutdown says whether in
// time), else why.
//
//	app.Listen(":3000", prefork.ListenConfig{EnablePrefork: true})
func (a *App) Listen(addr string, config ...ListenConfig) error {
	if len(config) == 0 {
		a.setServer(nil)
		return a.App.Listen(addr)
	}
	if !config[0].EnablePrefork {
		a.setServer(nil)
		return a.App.Listen(addr, config[0].fiber())
	}
	cfg, err := config[0].withDefaults()
	if err != nil {
		return err
	}
	tlsConfig, err := cfg.tlsConfig(a.App)
	if err != nil {
		return err
	}
	key := listenerKey(cfg.ListenerNetwork, addr)
	if here.inherited != nil {
		return a.serveChild(cfg, here.inherited.listener(key, cfg.ListenerNetwork, addr), tlsConfig)
	}
	if runtime.GOOS == "windows" {
		return fmt.Errorf("prefork: %w: %s: leave EnablePrefork off", ErrPlatformUnsupported, runtime.GOOS)
	}
	if over, err := here.endedBefore(a.index, key); over {
		return err
	}
	return a.serveMaster(cfg, tlsConfig, key, func() (*socket.Socket, error) {
		return bindOrTake(cfg.ListenerNetwork, addr, cfg.UnixSocketFileMode)
	})
}

// bindOrTake returns the socket that the service manager has passed for addr,
// or else binds one.
func bindOrTake(network, addr string, mode os.FileMode) (*socket.Socket, error) {
	ln, err := here.sockets.Listener(network, addr)
	if err != nil {
		return nil, err
	}
	if ln == nil {
		return socket.Listen(network, addr, mode)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	s, err := socket.Take(ln)
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	s.Disown() // the file is the service manager's
	return s, nil
}

// Listener serves HTTP on ln, as fiber.App.Listener does. With EnablePrefork
// the socket of ln is shared by the children.
//
// main runs in the children too. There are three ways to open ln:
//
//   - with [NewListener], which returns the right thing in both: the best, and
//     the only one that keeps wrappers around ln (limits, PROXY protocol);
//   - with SO_REUSEPORT, so that it can be opened again in a child, where it
//     is asked for its TLS config and then closed (Linux only, and not on the
//     MPTCP socket that net.ListenConfig makes without SetMultipathTCP(false));
//   - in the master only (if !prefork.IsChild()), with nil in the children;
//     when it has TLS around it, the children need ListenConfig.TLSConfig.
//
// ln may be a *net.TCPListener, a *net.UnixListener, a tls.NewListener around
// one, or anything around a NewListener. What cannot be shared (a listener in
// memory, a foreign type) is served by this process alone, after a warning.
func (a *App) Listener(ln net.Listener, config ...ListenConfig) error {
	if len(config) == 0 {
		a.setServer(nil)
		return a.App.Listener(ln)
	}
	if !config[0].EnablePrefork {
		a.setServer(nil)
		return a.App.Listener(ln, config[0].fiber())
	}
	cfg, err := config[0].withDefaults()
	if err != nil {
		return err
	}
	parts := takeApart(ln)
	const key = "" // a listener that the application opened
	if here.inherited != nil {
		return a.serveChildListener(cfg, key, ln, parts)
	}
	if cfg.CertFile != "" || cfg.CertKeyFile != "" || cfg.CertClientFile != "" || cfg.AutoCertManager != nil || cfg.TLSConfig != nil && parts.tls == nil {
		cfg.log().warnf("Listener serves the listener that it is given: the TLS fields do not turn TLS on (listener has TLS: %t)", parts.tls != nil)
	}
	if ln == nil {
		return invalid("Listener", "nil", "only a child may pass no listener")
	}
	switch {
	case runtime.GOOS == "windows":
		return fmt.Errorf("prefork: %w: %s: leave EnablePrefork off", ErrPlatformUnsupported, runtime.GOOS)
	case parts.own != nil:
		return a.serveMaster(cfg, parts.tls, parts.own.key, parts.own.hold)
	case parts.plain == nil:
		return a.serveAlone(ln, cfg, "it has no socket that a child could inherit; wrap a prefork.NewListener instead")
	}
	if cfg.ListenerMode == ListenerModeReuseport || cfg.DisableReuseportFallback {
		return fmt.Errorf("prefork: listen on %v: %w: a listener that the application opened can only be shared; use prefork.NewListener",
			ln.Addr(), ErrReuseportUnsupported)
	}
	held, err := socket.Take(parts.plain)
	if err != nil {
		return fmt.Errorf("prefork: take over the listener on %v: %w", ln.Addr(), err)
	}
	if held.Reuseport() {
		// main opens a copy of ln in each child. It must not get connections.
		if err := held.Pin(); err != nil {
			plain, lnErr := held.Listener()
			if lnErr != nil {
				return fmt.Errorf("prefork: take over the listener on %v: %w", ln.Addr(), lnErr)
			}
			if parts.tls != nil {
				plain = tls.NewListener(plain, parts.tls)
			}
			return a.serveAlone(plain, cfg, fmt.Sprintf("the copies that main opens in the children would take connections from it (%v); use prefork.NewListener instead", err))
		}
	}
	cfg.ListenerMode = ListenerModeShared // it is one socket, with options that others would lack
	err = a.serveMaster(cfg, parts.tls, key, func() (*socket.Socket, error) { return held, nil })
	if errors.Is(err, ErrAlreadyRunning) {
		_ = held.Close() // nobody has taken it
	}
	return err
}

// serveAlone serves a listener that cannot be shared.
func (a *App) serveAlone(ln net.Listener, cfg ListenConfig, why string) error {
	cfg.log().warnf("no prefork for the %T on %v: %s", ln, ln.Addr(), why)
	plain := cfg.fiber()
	plain.EnablePrefork = false
	a.setServer(nil)
	return a.App.Listener(ln, plain)
}

// NewListener opens a listener for App.Listener in a way that is right in both
// kinds of process: in the master it binds network ("tcp", "tcp4", "tcp6" or
// "unix") and addr, or takes the socket that systemd has passed for it; in a
// child it returns what the master has bound. Wrap it as you like. Served
// without prefork it is an ordinary listener.
//
//	ln, err := prefork.NewListener("tcp", ":3000")
//	…
//	app.Listener(netutil.LimitListener(ln, 1000), prefork.ListenConfig{EnablePrefork: true})
//
// Errors are those of [net.Listen], and ErrInvalidConfig for other networks.
func NewListener(network, addr string) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, invalid("network", fmt.Sprintf("%q", network), "want tcp, tcp4, tcp6 or unix")
	}
	key := listenerKey(network, addr)
	if here.inherited != nil {
		return here.inherited.listener(key, network, addr), nil
	}
	if runtime.GOOS == "windows" {
		return net.Listen(network, addr)
	}
	if s := here.keptSocket(key); s != nil {
		return &boundListener{socket: s, addr: s.Addr(), key: key, kept: true}, nil
	}
	s, err := bindOrTake(network, addr, 0)
	if err != nil {
		return nil, err
	}
	return &boundListener{socket: s, addr: s.Addr(), key: key}, nil
}

// listenerKey tells the servers of one program apart, together with the app's
// number: master and child come to the same. It goes into an environment.
func listenerKey(network, addr string) string {
	return network + " " + strings.ReplaceAll(addr, "\x00", "@")
}

// boundListener is what NewListener returns in the master: a socket that
// waits to be handed to children, or to be served here when nobody preforks.
type boundListener struct {
	addr net.Addr
	key  string
	kept bool // it is of the server that the program before has left, and stays that's

	mu     sync.Mutex
	socket *socket.Socket // nil once taken
	ln     net.Listener   // set by the first Accept
	closed bool
}

// hold gives up the socket to a master.
func (b *boundListener) hold() (*socket.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil || b.closed {
		return nil, fmt.Errorf("prefork: listener on %v: %w", b.addr, net.ErrClosed)
	}
	s := b.socket
	b.socket = nil
	return s, nil
}

// Accept serves without prefork.
func (b *boundListener) Accept() (net.Conn, error) {
	b.mu.Lock()
	if b.ln == nil && b.socket != nil && !b.closed {
		ln, err := b.socket.Listener()
		if err != nil {
			b.mu.Unlock()
			return nil, err
		}
		b.ln = ln
	}
	ln := b.ln
	b.mu.Unlock()
	if ln == nil {
		return nil, &net.OpError{Op: "accept", Net: b.addr.Network(), Addr: b.addr, Err: net.ErrClosed}
	}
	return ln.Accept()
}

// Addr returns the bound address.
func (b *boundListener) Addr() net.Addr { return b.addr }

// Close closes the listener, unless a master has taken it.
func (b *boundListener) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.socket == nil || b.kept {
		return nil
	}
	b.closed = true
	b.socket.Unlink()
	if b.ln != nil {
		return b.ln.Close()
	}
	return b.socket.Close()
}

// parts is what a listener is made of, as far as it matters here.
type parts struct {
	own       *boundListener     // NewListener's in the master, however deep
	inherited *inheritedListener // NewListener's in a child, however deep
	plain     net.Listener       // the system's, bare or inside crypto/tls's
	tls       *tls.Config        // of a crypto/tls listener at the outside
}

// takeApart looks into ln. A crypto/tls listener is known; any other wrapper
// is only searched for a NewListener, because it works by itself then.
func takeApart(ln net.Listener) parts {
	var p parts
	p.tls, _ = tlsOf(ln)
	p.own, p.inherited = findOwn(reflect.ValueOf(ln), 8)
	for ln != nil {
		switch l := ln.(type) {
		case *net.TCPListener:
			if l != nil {
				p.plain = l
			}
			return p
		case *net.UnixListener:
			if l != nil {
				p.plain = l
			}
			return p
		}
		if _, inner := tlsOf(ln); inner != nil {
			ln = inner
			continue
		}
		return p
	}
	return p
}

// tlsOf returns the config of a crypto/tls listener and what is inside it.
func tlsOf(ln net.Listener) (*tls.Config, net.Listener) {
	v := reflect.ValueOf(ln)
	if !v.IsValid() || v.Type() != tlsListenerType || v.IsNil() {
		return nil, nil
	}
	v = v.Elem()
	var config *tls.Config
	if f := v.FieldByName("config"); f.IsValid() && f.Type() == reflect.TypeFor[*tls.Config]() {
		config = (*tls.Config)(f.UnsafePointer())
	}
	var inner net.Listener
	if f := v.FieldByName("Listener"); f.IsValid() && f.CanInterface() {
		inner, _ = f.Interface().(net.Listener)
	}
	return config, inner
}

var tlsListenerType = reflect.TypeOf(tls.NewListener(nil, nil))

// findOwn searches the fields of a wrapper, at most depth levels down, for
// what NewListener returned.
func findOwn(v reflect.Value, depth int) (*boundListener, *inheritedListener) {
	for v.IsValid() && (v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer) {
		if v.IsNil() {
			return nil, nil
		}
		switch v.Type() {
		case reflect.TypeFor[*boundListener]():
			return (*boundListener)(v.UnsafePointer()), nil
		case reflect.TypeFor[*inheritedListener]():
			return nil, (*inheritedListener)(v.UnsafePointer())
		}
		v = v.Elem()
	}
	if depth == 0 || !v.IsValid() || v.Kind() != reflect.Struct {
		return nil, nil
	}
	listener := reflect.TypeFor[net.Listener]()
	for i := range v.NumField() {
		if f := v.Field(i); f.Type().Implements(listener) || f.Kind() == reflect.Struct && reflect.PointerTo(f.Type()).Implements(listener) {
			if own, inh := findOwn(f, depth-1); own != nil || inh != nil {
				return own, inh
			}
		}
	}
	return nil, nil
}
