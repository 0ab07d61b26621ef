//go:build unix

package prefork_test

// Programs that use much of Fiber, and the tests that it works in children.

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/recover"
	"github.com/gofiber/fiber/v3/middleware/requestid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/acme/autocert"

	"github.com/fiber-prefork/prefork"
)

type views struct{ t *template.Template }

func (v *views) Load() error {
	v.t = template.Must(template.New("page").Parse("<p>{{.Name}}</p>"))
	return nil
}

func (v *views) Render(w io.Writer, name string, data any, _ ...string) error {
	return v.t.ExecuteTemplate(w, name, data)
}

type customCtx struct {
	fiber.DefaultCtx
}

func (c *customCtx) Params(key string, defaultValue ...string) string {
	return "custom " + c.DefaultCtx.Params(key, defaultValue...)
}

func features(o *programOptions) {
	fapp := fiber.NewWithCustomCtx(func(app *fiber.App) fiber.CustomCtx {
		return &customCtx{DefaultCtx: *fiber.NewDefaultCtx(app)}
	}, fiber.Config{
		Views:     &views{},
		BodyLimit: 64 << 20,
		ErrorHandler: func(c fiber.Ctx, err error) error {
			return c.Status(http.StatusTeapot).SendString("handled: " + err.Error())
		},
	})
	fapp.Hooks().OnFork(func(int) error { tell("early", "fork"); return nil })
	fapp.Hooks().OnListen(func(fiber.ListenData) error { tell("early", "listen"); return nil })
	app := prefork.Wrap(fapp)
	app.Use(recover.New(), requestid.New())
	app.Get("/param/:x", func(c fiber.Ctx) error { return c.SendString(c.Params("x")) })
	api := app.Group("/api", func(c fiber.Ctx) error { c.Set("X-Api", "1"); return c.Next() })
	api.Get("/v1", func(c fiber.Ctx) error { return c.JSON(fiber.Map{"v": 1}) })
	sub := prefork.New()
	sub.Get("/inner", func(c fiber.Ctx) error { return c.SendString("mounted") })
	app.Use("/sub", sub)
	app.Get("/error", func(fiber.Ctx) error { return errors.New("oops") })
	app.Get("/panic", func(fiber.Ctx) error { panic("in a handler") })
	app.Get("/view", func(c fiber.Ctx) error { return c.Render("page", fiber.Map{"Name": "<x>"}) })
	app.Post("/sum", func(c fiber.Ctx) error { return c.SendString(fmt.Sprintf("%x", sha256.Sum256(c.Body()))) })
	app.Get("/sse", func(c fiber.Ctx) error {
		c.Set("Content-Type", "text/event-stream")
		return c.SendStreamWriter(func(w *bufio.Writer) {
			for i := range 5 {
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				if w.Flush() != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	})
	app.Get("/ws", func(c fiber.Ctx) error {
		sum := sha1.Sum([]byte(c.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		c.Status(http.StatusSwitchingProtocols)
		c.Set("Upgrade", "websocket")
		c.Set("Connection", "Upgrade")
		c.Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
		c.RequestCtx().Hijack(func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
		return nil
	})
	instrument(app, o)
	finish(o, app.Listen(o.Addr, o.ListenConfig))
}

func TestFeaturesInChildren(t *testing.T) {
	t.Parallel()
	s := start(t, "features", options{"enable_prefork": true, "Children": 2})
	s.await(`EVENT \d+ early fork`)
	s.await(`EVENT \d+ early listen`)
	assert.Equal(t, "custom 7", s.get("/param/7"))
	assert.JSONEq(t, `{"v":1}`, s.get("/api/v1"))
	assert.Equal(t, "mounted", s.get("/sub/inner"))
	assert.Equal(t, "<p>&lt;x&gt;</p>", s.get("/view"))
	assert.Equal(t, "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n", s.get("/sse"))
	for path, want := range map[string]string{"/error": "handled: oops", "/panic": "handled: in a handler"} {
		body, err := fetch(newClient(), "http://"+s.addr+path)
		require.ErrorContains(t, err, "418")
		assert.Equal(t, want, body)
	}

	large := bytes.Repeat([]byte("0123456789abcdef"), 2<<20) // 32 MiB
	resp, err := newClient().Post("http://"+s.addr+"/sum", "application/octet-stream", bytes.NewReader(large))
	require.NoError(t, err)
	sum, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256(large)), string(sum))

	conn, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	upgrade, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.NoError(t, upgrade.Body.Close())
	assert.Equal(t, http.StatusSwitchingProtocols, upgrade.StatusCode)
	assert.Equal(t, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", upgrade.Header.Get("Sec-WebSocket-Accept"))
	_, err = io.WriteString(conn, "frame")
	require.NoError(t, err)
	echo := make([]byte, 5)
	_, err = io.ReadFull(r, echo)
	require.NoError(t, err)
	assert.Equal(t, "frame", string(echo))
	s.stop()
}

// wrapped is a program with a banner and startup hooks.
func wrapped(o *programOptions) {
	fapp := fiber.New(fiber.Config{AppName: "wrapped"})
	fapp.Hooks().OnPreStartupMessage(func(d *fiber.PreStartupMessageData) error {
		tell("prestartup", "early")
		return nil
	})
	app := prefork.Wrap(fapp)
	app.Hooks().OnPreStartupMessage(func(d *fiber.PreStartupMessageData) error {
		tell("prestartup", "prefork=%t children=%d", d.Prefork, len(d.ChildPIDs))
		d.AddInfo("mine", "Mine", "entry")
		return nil
	})
	app.Hooks().OnPostStartupMessage(func(d *fiber.PostStartupMessageData) error {
		tell("poststartup", "prefork=%t children=%d count=%d child=%t", d.Prefork, len(d.ChildPIDs), d.ProcessCount, d.IsChild)
		return nil
	})
	o.ListenerAddrFunc = func(addr net.Addr) { tell("addrfunc", "%v", addr) }
	o.BeforeServeFunc = func(*fiber.App) error { tell("beforeserve", ""); return nil }
	o.EnablePrintRoutes = true
	instrument(app, o)
	finish(o, app.Listen(o.Addr, o.ListenConfig))
}

func TestHooksAndBanner(t *testing.T) {
	t.Parallel()
	s := start(t, "wrap", options{"enable_prefork": true, "Children": 3, "Banner": true})
	master := s.cmd.Process.Pid
	listen := s.await(`^EVENT (\d+) listen (\S+) prefork=(\S+) count=(\d+) children=\[(\d+) (\d+) (\d+)\]`)
	assert.Equal(t, fmt.Sprint(master), listen[1])
	assert.Equal(t, []string{"true", "3"}, listen[3:5])
	assert.NotContains(t, s.addr, ":0", "the port is resolved")
	pids := s.readyPIDs(3)
	s.await(`INFO Prefork:\s+Enabled \(reuseport|shared\)`)
	s.await(`INFO Total process count:\s+3`)
	s.await(`INFO Child PIDs:\s+` + strings.Join(listen[5:], ", "))
	s.await(`INFO Mine:\s+entry`)
	s.await(`EVENT \d+ prestartup early`)
	s.await(`EVENT \d+ prestartup prefork=true children=3`)
	s.await(`EVENT \d+ poststartup prefork=true children=3 count=3 child=false`)
	s.await(`GET\s+\| /`) // the table of routes
	s.awaitN(`EVENT \d+ addrfunc `+s.addr+`$`, 4)
	s.awaitN(`EVENT \d+ beforeserve`, 4)

	// Order in the master: all forks, then all ready, then listen.
	var order []string
	for _, m := range s.matches(fmt.Sprintf(`^EVENT %d (fork|ready|listen)`, master)) {
		order = append(order, m[1])
	}
	assert.Len(t, order, 7)
	assert.Equal(t, "listen", order[6])

	kill(t, pids[0], 9)
	exit := s.await(fmt.Sprintf(`EVENT %d exit (\d) %d (.*)`, master, pids[0]))
	assert.Equal(t, "code=-1 asked=false status=signal: killed", exit[2])
	recovered := s.await(fmt.Sprintf(`EVENT %d recover %d (\d+)`, master, pids[0]))
	s.await(fmt.Sprintf(`EVENT %d fork %s`, master, recovered[1]))
	s.await(fmt.Sprintf(`EVENT %d ready %s %s 1 ready`, master, exit[1], recovered[1]))
	s.stop()
	assert.Len(t, s.matches(`EVENT \d+ listen `), 1, "OnListen runs once, and only in the master")
	for _, pid := range append(pids[1:], master) {
		assert.Len(t, s.matches(fmt.Sprintf(`^EVENT %d preshutdown`, pid)), 1)
		assert.Len(t, s.matches(fmt.Sprintf(`^EVENT %d postshutdown <nil>`, pid)), 1)
	}
}

// authority makes certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	a.issue("ca", "")
	a.pool.AddCert(a.cert)
	return a
}

// issue writes <name>.pem and <name>-key.pem.
func (a *authority) issue(name, host string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, key
	if a.cert == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
	} else {
		template.DNSNames = []string{host}
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	if a.cert == nil {
		a.cert, err = x509.ParseCertificate(der)
		require.NoError(a.t, err)
		a.key = key
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	require.NoError(a.t, os.WriteFile(filepath.Join(a.dir, name+".pem"), certPEM, 0o600))
	require.NoError(a.t, os.WriteFile(filepath.Join(a.dir, name+"-key.pem"), keyPEM, 0o600))
	if host == "" {
		return
	}
	// As autocert.DirCache keeps it: key first.
	ecDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(a.t, err)
	ecPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})
	require.NoError(a.t, os.WriteFile(filepath.Join(a.dir, host), append(ecPEM, certPEM...), 0o600))
}

func (a *authority) client(config *tls.Config) *http.Client {
	config.RootCAs = a.pool
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}, Timeout: patience}
}

// tlsApp turns TLS on in the way that Open names.
func tlsApp(o *programOptions) {
	app := newApp(o)
	app.Get("/hello", func(c fiber.Ctx) error {
		name := ""
		if info := c.ClientHelloInfo(); info != nil {
			name = info.ServerName
		}
		return c.SendString(fmt.Sprintf("%s %t", name, c.Secure()))
	})
	cert, key := filepath.Join(o.Dir, "server.pem"), filepath.Join(o.Dir, "server-key.pem")
	switch o.Open {
	case "files":
		o.CertFile, o.CertKeyFile = cert, key
	case "func":
		o.CertFile, o.CertKeyFile = cert, key
		o.TLSConfigFunc = func(c *tls.Config) { c.NextProtos = []string{"proto-x"} }
	case "min":
		o.CertFile, o.CertKeyFile, o.TLSMinVersion = cert, key, tls.VersionTLS13
	case "mutual":
		o.CertFile, o.CertKeyFile, o.CertClientFile = cert, key, filepath.Join(o.Dir, "ca.pem")
	case "config":
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			log.Fatal(err)
		}
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	case "no tickets":
		o.CertFile, o.CertKeyFile = cert, key
		o.TLSConfigFunc = func(c *tls.Config) { c.SessionTicketsDisabled = true }
	case "own keys":
		o.CertFile, o.CertKeyFile = cert, key
		o.TLSConfigFunc = func(c *tls.Config) { c.SetSessionTicketKeys([][32]byte{{1, 2, 3}}) }
	case "auto":
		o.AutoCertManager = &autocert.Manager{
			Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(o.Dir), HostPolicy: autocert.HostWhitelist("auto.test"),
		}
	}
	finish(o, app.Listen(o.Addr, o.ListenConfig))
}

func TestTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", "localhost")
	a.issue("client", "client.test")
	a.issue("auto", "auto.test")
	clientCert, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "client.pem"), filepath.Join(a.dir, "client-key.pem"))
	require.NoError(t, err)

	for _, how := range []string{"files", "func", "min", "mutual", "config", "auto"} {
		t.Run(how, func(t *testing.T) {
			s := start(t, "tls", options{"enable_prefork": true, "Children": 2, "Open": how, "Dir": a.dir, "Banner": true})
			s.await(`INFO Server started on:\s+https://127.0.0.1`)
			config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "localhost"}
			if how == "auto" {
				config.ServerName = "auto.test"
			}
			if how == "mutual" {
				_, err := fetch(a.client(config.Clone()), "https://"+s.addr+"/hello")
				require.Error(t, err, "no client certificate")
				config.Certificates = []tls.Certificate{clientCert}
			}
			for range 4 {
				body, err := fetch(a.client(config.Clone()), "https://"+s.addr+"/hello")
				require.NoError(t, err)
				want := " true"
				if how == "files" || how == "func" || how == "min" || how == "mutual" {
					want = "localhost true"
				}
				assert.Equal(t, want, body)
			}
			switch how {
			case "func":
				conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: a.pool, NextProtos: []string{"proto-x"}, MinVersion: tls.VersionTLS12})
				require.NoError(t, err)
				assert.Equal(t, "proto-x", conn.ConnectionState().NegotiatedProtocol)
				require.NoError(t, conn.Close())
			case "min":
				_, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.addr, &tls.Config{RootCAs: a.pool, MaxVersion: tls.VersionTLS12, MinVersion: tls.VersionTLS12})
				require.ErrorContains(t, err, "protocol version")
			}
			_, err := fetch(newClient(), "http://"+s.addr+"/hello")
			require.Error(t, err, "plain HTTP is not served")
			s.stop()
		})
	}
}
