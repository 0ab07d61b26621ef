package main

// What the Go peers serve: the same handlers on each of them. A child of a
// prefork peer runs this program again with the same arguments, and comes here
// too.

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/valyala/fasthttp"
	fastprefork "github.com/valyala/fasthttp/prefork"

	"github.com/fiber-prefork/prefork"
)

// Paths that the peers serve.
const (
	pathHello = "/"
	pathJSON  = "/json"
	pathCPU   = "/cpu"   // about 1 ms of work
	pathSleep = "/sleep" // 10 ms
	pathSlow  = "/slow"  // 300 ms
	pathPID   = "/pid"   // answers with the pid of the process that answers
)

const (
	helloText = "Hello, World!"
	sleepTime = 10 * time.Millisecond
	slowTime  = 300 * time.Millisecond
	plainText = "text/plain; charset=utf-8"
	jsonType  = "application/json"
	manyTimes = 1_000_000
)

// article is what the JSON handlers encode, for every request anew.
type article struct {
	ID     int      `json:"id"`
	Title  string   `json:"title"`
	Author string   `json:"author"`
	Tags   []string `json:"tags"`
	Price  float64  `json:"price"`
	Stock  bool     `json:"stock"`
}

func newArticle() article {
	return article{
		ID: 4711, Title: "Of clocks and water", Author: "A. Uthor",
		Tags: []string{"clocks", "water", "time"}, Price: 12.5, Stock: true,
	}
}

// spin does work of a size that does not depend on the clock: a peer that gets
// less of a processor takes longer over it.
func spin(rounds int) uint64 {
	x := uint64(88172645463325252)
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// calibrate finds how many rounds of spin take d on a processor that is not shared.
func calibrate(d time.Duration) int {
	const rounds = 1_000_000
	best := time.Hour
	for range 30 {
		began := time.Now()
		if spin(rounds) == 0 {
			break // never: it keeps the compiler from leaving the call out
		}
		best = min(best, time.Since(began))
	}
	return int(float64(rounds) * float64(d) / float64(best))
}

// serving is how a Go peer is asked to serve.
type serving struct {
	kind    string
	addr    string
	workers int
	spin    int
	cert    string // "" for no TLS
	key     string
}

// serve runs a Go peer until it ends.
func serve(args []string) error {
	var s serving
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.StringVar(&s.kind, "kind", "", "which peer")
	flags.StringVar(&s.addr, "addr", "", "where")
	flags.IntVar(&s.workers, "workers", 2, "children")
	flags.IntVar(&s.spin, "spin", 1000, "rounds of work of the CPU-bound handler")
	flags.StringVar(&s.cert, "cert", "", "certificate")
	flags.StringVar(&s.key, "key", "", "its key")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	switch s.kind {
	case "prefork", "prefork-off":
		return s.prefork()
	case "fiber-prefork":
		return s.fiberPrefork()
	case "fiber":
		return s.fiber()
	case "fasthttp-reuseport", "fasthttp-shared":
		return s.fasthttp()
	case "nethttp":
		return s.nethttp()
	default:
		return fmt.Errorf("serve: no peer %q", s.kind)
	}
}

// routes registers the handlers with Fiber.
func (s serving) routes(app fiber.Router) {
	app.Get(pathHello, func(c fiber.Ctx) error { return c.SendString(helloText) })
	app.Get(pathJSON, func(c fiber.Ctx) error { return c.JSON(newArticle()) })
	app.Get(pathCPU, func(c fiber.Ctx) error { return c.SendString(strconv.FormatUint(spin(s.spin), 10)) })
	app.Get(pathSleep, func(c fiber.Ctx) error { time.Sleep(sleepTime); return c.SendString(helloText) })
	app.Get(pathSlow, func(c fiber.Ctx) error { time.Sleep(slowTime); return c.SendString(helloText) })
	app.Get(pathPID, func(c fiber.Ctx) error { return c.SendString(strconv.Itoa(os.Getpid())) })
}

// prefork is this library. It has its defaults, and the number of children.
func (s serving) prefork() error {
	app := prefork.New()
	s.routes(app)
	cfg := prefork.ListenConfig{
		EnablePrefork: true, DisableStartupMessage: true, Children: s.workers,
		CertFile: s.cert, CertKeyFile: s.key,
	}
	if s.kind == "prefork-off" {
		cfg.Steering = prefork.SteeringOff
	}
	return app.Listen(s.addr, cfg)
}

// fiberPrefork is Fiber's own. The number of its children is GOMAXPROCS, which
// is in the environment. With the default threshold the service ends with the
// second child that is killed on two CPUs: it gets one that is never reached.
func (s serving) fiberPrefork() error {
	app := fiber.New()
	s.routes(app)
	return app.Listen(s.addr, fiber.ListenConfig{
		EnablePrefork: true, DisableStartupMessage: true, PreforkRecoverThreshold: manyTimes,
		CertFile: s.cert, CertKeyFile: s.key,
	})
}

// fiber is one process that drains when it is asked to end. Its Listen returns
// before the drain is over: main has to wait.
func (s serving) fiber() error {
	app := fiber.New()
	s.routes(app)
	over := onTerm(func(ctx context.Context) error { return app.ShutdownWithContext(ctx) })
	if err := app.Listen(s.addr, fiber.ListenConfig{DisableStartupMessage: true, CertFile: s.cert, CertKeyFile: s.key}); err != nil {
		return err
	}
	return <-over
}

// onTerm drains at SIGTERM, and says when that is over.
func onTerm(drain func(context.Context) error) <-chan error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	over := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stop()
		limit, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		over <- drain(limit)
	}()
	return over
}

// fasthttp is fasthttp with its prefork package.
func (s serving) fasthttp() error {
	server := &fasthttp.Server{Handler: s.fastHandler}
	p := fastprefork.New(server)
	p.Reuseport = s.kind == "fasthttp-reuseport"
	p.RecoverThreshold = manyTimes
	p.OnMasterDeath = func() { os.Exit(1) } // as its documentation recommends
	if s.cert != "" {
		return p.ListenAndServeTLS(s.addr, s.key, s.cert)
	}
	return p.ListenAndServe(s.addr)
}

func (s serving) fastHandler(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType(plainText)
	switch string(ctx.Path()) {
	case pathHello:
		ctx.SetBodyString(helloText)
	case pathJSON:
		body, err := json.Marshal(newArticle())
		if err != nil {
			ctx.Error(err.Error(), fasthttp.StatusInternalServerError)
			return
		}
		ctx.SetContentType(jsonType)
		ctx.SetBody(body)
	case pathCPU:
		ctx.SetBodyString(strconv.FormatUint(spin(s.spin), 10))
	case pathSleep:
		time.Sleep(sleepTime)
		ctx.SetBodyString(helloText)
	case pathSlow:
		time.Sleep(slowTime)
		ctx.SetBodyString(helloText)
	case pathPID:
		ctx.SetBodyString(strconv.Itoa(os.Getpid()))
	default:
		ctx.Error("not found", fasthttp.StatusNotFound)
	}
}

// nethttp is the standard library's server, which drains when it is asked to end.
func (s serving) nethttp() error {
	mux := http.NewServeMux()
	text := func(path string, body func() string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", plainText)
			_, _ = w.Write([]byte(body()))
		})
	}
	text("/{$}", func() string { return helloText })
	text(pathCPU, func() string { return strconv.FormatUint(spin(s.spin), 10) })
	text(pathSleep, func() string { time.Sleep(sleepTime); return helloText })
	text(pathSlow, func() string { time.Sleep(slowTime); return helloText })
	text(pathPID, func() string { return strconv.Itoa(os.Getpid()) })
	mux.HandleFunc("GET "+pathJSON, func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(newArticle())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", jsonType)
		_, _ = w.Write(body)
	})

	server := &http.Server{Addr: s.addr, Handler: mux, ReadHeaderTimeout: time.Minute}
	over := onTerm(server.Shutdown)
	var err error
	if s.cert != "" {
		err = server.ListenAndServeTLS(s.cert, s.key)
	} else {
		err = server.ListenAndServe()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return <-over
	}
	return err
}

// moduleVersion returns the version of a module that this program is built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "?"
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return "?"
}
