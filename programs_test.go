//go:build unix

package prefork_test

// The programs under test. Each is an ordinary main that uses the library;
// what happens in them is told in lines "EVENT <pid> <name> <data>".

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/timeout"

	"github.com/fiber-prefork/prefork"
)

// programOptions are what a test may set. The embedded ListenConfig is set by
// its JSON names, or by those of its fields.
type programOptions struct {
	prefork.ListenConfig

	Addr        string        // of Listen
	Init        time.Duration // that main takes before Listen in a child
	FailStart   string        // how a child ends before it is ready: "exit" or "hang", with a slot for that slot only
	FailAgain   bool          // FailStart is for children with a recovery behind them only
	FailIf      string        // FailStart is for while there is a file at this path only
	Flag        string        // path of a file by which children tell that they have been there
	AfterListen time.Duration // that main takes after Listen
	PostDelay   time.Duration // of OnPostShutdown
	Graceful    bool          // GracefulContext from signal.NotifyContext
	Banner      bool
	Close       []int  // descriptors to close at the start of the master
	NoFile      uint64 // RLIMIT_NOFILE that the master sets itself once it listens
	Open        string // how the program opens its listener
	TLS         bool   // around the listener
	Dir         string // of certificates
	At          string // where App.Shutdown is called in the master
}

var programs = map[string]func(o *programOptions){
	"app": func(o *programOptions) {
		app := newApp(o)
		finish(o, app.Listen(o.Addr, o.ListenConfig))
	},
	"background": background,
	"listener":   listener,
	"features":   features,
	"wrap":       wrapped,
	"two":        twoApps,
	"twice":      twice,
	"again":      again,
	"fallback": func(o *programOptions) {
		app := newApp(o)
		err := app.Listen(o.Dir, o.ListenConfig) // is taken
		tell("fallback", "%t %v", errors.Is(err, syscall.EADDRINUSE), err)
		if err == nil {
			log.Fatal("served by the first Listen")
		}
		finish(o, app.Listen(o.Addr, o.ListenConfig))
	},
	"sequence": func(o *programOptions) {
		first := prefork.New()
		first.Hooks().OnListen(func(fiber.ListenData) error { go func() { _ = first.Shutdown() }(); return nil })
		tell("first", "%v", first.Listen(o.Addr, o.ListenConfig))
		app := newApp(o)
		finish(o, app.Listen(o.Addr, o.ListenConfig))
	},
	"branch": func(o *programOptions) {
		app := newApp(o)
		if prefork.IsChild() {
			finish(o, app.Listener(nil, o.ListenConfig))
			return
		}
		ln, err := net.Listen("tcp4", o.Addr)
		if err != nil {
			log.Fatal(err)
		}
		finish(o, app.Listener(ln, o.ListenConfig))
	},
	"quiet": func(o *programOptions) {
		app := prefork.New()
		routes(app.App)
		_ = app.Listen(o.Addr, o.ListenConfig)
	},
	"two foreign": twoForeign,
	"alike":       alike,
	"tls":         tlsApp,
	"nested":      nested,
}

func runProgram(name string) {
	o := &programOptions{Addr: "127.0.0.1:0"}
	if err := json.Unmarshal([]byte(os.Getenv(envConfig)), o); err != nil {
		log.Fatalf("options: %v", err)
	}
	o.DisableStartupMessage = !o.Banner
	program, ok := programs[name]
	if !ok {
		log.Fatalf("no program %q", name)
	}
	program(o)
}

var (
	printing sync.Mutex
	told     = make(chan struct{}) // that App.Shutdown has returned, for a main that waits for it
)

// tell reports an event in one write.
func tell(name, format string, args ...any) {
	printing.Lock()
	defer printing.Unlock()
	_, _ = fmt.Fprintf(os.Stdout, "EVENT %d %s %s\n", os.Getpid(), name, fmt.Sprintf(format, args...))
}

// newApp is an app with routes that do what tests need, and hooks that tell.
func newApp(o *programOptions) *prefork.App {
	app := prefork.New()
	instrument(app, o)
	return app
}

func instrument(app *prefork.App, o *programOptions) {
	if prefork.IsChild() {
		failStart(o)
	}
	routes(app.App)
	draining := make(chan struct{})
	app.Hooks().OnPreShutdown(sync.OnceValue(func() error { close(draining); return nil }))
	app.Get("/untildrain", func(c fiber.Ctx) error {
		tell("sleeping", "until the drain")
		<-draining
		time.Sleep(300 * time.Millisecond)
		return c.SendString("slept")
	})
	longRoutes(app.App, draining)
	shutdown := func() { go func() { tell("shutdown", "%v", app.Shutdown()) }() }
	if o.At != "" && !prefork.IsChild() {
		switch o.At {
		case "OnFork":
			app.Hooks().OnFork(func(int) error { tell("shutdown", "%v", app.Shutdown()); return nil })
		case "OnListen":
			app.Hooks().OnListen(func(fiber.ListenData) error { tell("shutdown", "%v", app.Shutdown()); return nil })
		case "OnChildReady":
			app.Hooks().OnChildReady(func(prefork.Child) error { tell("shutdown", "%v", app.ShutdownWithTimeout(time.Minute)); return nil })
		case "OnChildExit":
			app.Hooks().OnChildExit(func(prefork.ChildExit) error { tell("shutdown", "%v", app.Shutdown()); return nil })
		case "goroutine":
			app.Hooks().OnListen(func(fiber.ListenData) error { shutdown(); shutdown(); return nil })
		case "short":
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGUSR1)
			go func() {
				<-c
				tell("shutdown", "%v", app.ShutdownWithTimeout(200*time.Millisecond))
				close(told)
			}()
		case "raw":
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGUSR1)
			go func() {
				<-c
				tell("shutdown", "%v", app.App.Shutdown())
			}()
		case "hang in OnPreShutdown":
			app.Hooks().OnPreShutdown(func() error { select {} })
		case "hang in OnFork":
			app.Hooks().OnFork(func(int) error { tell("hangs", ""); select {} })
		case "panic":
			app.Hooks().OnListen(func(fiber.ListenData) error { panic("in OnListen") })
		case "BeforeServe":
			o.BeforeServeFunc = func(*fiber.App) error { return errors.New("refused by BeforeServeFunc") }
		}
	}
	if o.At == "warm up" && prefork.IsChild() {
		o.BeforeServeFunc = func(*fiber.App) error { tell("warming", "up"); time.Sleep(20 * time.Second); return nil }
	}
	limits(o)
	if o.At == "status" && !prefork.IsChild() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		go func() {
			for range c {
				fds, _ := os.ReadDir("/proc/self/fd")
				tell("status", "fds=%d goroutines=%d", len(fds), runtime.NumGoroutine())
			}
		}()
	}
	if o.At == "children" && !prefork.IsChild() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		go func() {
			for range c {
				tell("children", "%+v", app.Children())
			}
		}()
	}
	if o.At == "operate" && !prefork.IsChild() {
		go operate(app)
	}
	app.Get("/shutdown", func(fiber.Ctx) error {
		go func() { tell("shutdown", "%v", app.Shutdown()) }()
		return nil
	})
	app.Hooks().OnListen(func(d fiber.ListenData) error {
		addr := d.Host
		if d.Port != "" {
			addr += ":" + d.Port
		}
		tell("listen", "%s prefork=%t count=%d children=%v", addr, d.Prefork, d.ProcessCount, d.ChildPIDs)
		return nil
	})
	app.Hooks().OnFork(func(pid int) error { tell("fork", "%d", pid); return nil })
	app.Hooks().OnChildReady(func(c prefork.Child) error {
		tell("ready", "%d %d %d %s", c.Slot, c.PID, c.Recoveries, c.State)
		return nil
	})
	app.Hooks().OnChildExit(func(e prefork.ChildExit) error {
		tell("exit", "%d %d code=%d asked=%t status=%s", e.Slot, e.PID, e.ExitCode, e.Asked, e.Status)
		return nil
	})
	app.Hooks().OnChildHang(func(c prefork.Child) error { tell("hang", "%d %d %s", c.Slot, c.PID, c.State); return nil })
	app.Hooks().OnChildRecover(func(oldPID, newPID int) error { tell("recover", "%d %d", oldPID, newPID); return nil })
	app.Hooks().OnPreShutdown(func() error { tell("preshutdown", ""); return nil })
	app.Hooks().OnPostShutdown(func(err error) error {
		time.Sleep(o.PostDelay)
		tell("postshutdown", "%v", err)
		return nil
	})
	if o.Graceful {
		o.GracefulContext, _ = signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	}
}

// operate does what is asked for on standard input, one after another.
func operate(app *prefork.App) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var n int
		var err error
		switch line := lines.Text(); line {
		case "reload":
			err = app.Reload(context.Background())
		case "reloads":
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() { tell("operated", "%v", app.Reload(context.Background())) })
			}
			all.Wait()
			continue
		case "upgrade":
			err = app.Upgrade(context.Background())
		default:
			if _, err = fmt.Sscanf(line, "scale %d", &n); err == nil {
				err = app.Scale(n)
			}
		}
		tell("operated", "%v", err)
		for _, sentinel := range []error{prefork.ErrReload, prefork.ErrUpgrade, prefork.ErrNotRunning, prefork.ErrInvalidConfig, prefork.ErrChildStart} {
			if errors.Is(err, sentinel) {
				tell("operation is", "%v", sentinel)
			}
		}
	}
}

// longRoutes adds connections that go on until the client or the process ends,
// or, with ?until=1, until 700 ms after the beginning of the drain.
func longRoutes(app *fiber.App, draining <-chan struct{}) {
	tick := func(until bool, w io.Writer, flush func() error) {
		var end <-chan time.Time
		begin := draining
		if !until {
			begin = nil
		}
		for {
			if _, err := io.WriteString(w, "tick\n"); err != nil || flush() != nil {
				return
			}
			select {
			case <-begin:
				begin, end = nil, time.After(700*time.Millisecond)
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	app.Get("/hijack", func(c fiber.Ctx) error {
		until := c.Query("until") == "1"
		c.RequestCtx().Hijack(func(conn net.Conn) { tick(until, conn, func() error { return nil }) })
		return c.SendStatus(fiber.StatusSwitchingProtocols)
	})
	app.Get("/stream", func(c fiber.Ctx) error {
		until := c.Query("until") == "1"
		return c.SendStreamWriter(func(w *bufio.Writer) { tick(until, w, w.Flush) })
	})
}

// limits lowers a limit of the process at SIGUSR1 and raises it at SIGWINCH.
func limits(o *programOptions) {
	const low = 4 // below what is in use
	resource := syscall.RLIMIT_NOFILE
	switch {
	case o.At == "nofile":
	case o.At == "nproc" && !prefork.IsChild():
		resource = rlimitNproc
		warmThreads() // which the limit counts too
	default:
		return
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGWINCH)
	go func() {
		var limit syscall.Rlimit
		_ = syscall.Getrlimit(resource, &limit)
		for sig := range c {
			set, name := limit, "high"
			if sig == syscall.SIGUSR1 {
				set.Cur, name = low, "low"
			}
			if err := syscall.Setrlimit(resource, &set); err != nil {
				log.Fatal(err)
			}
			tell(o.At, "%s", name)
		}
	}()
}

// warmThreads makes Go start more threads than it will need at once: it keeps
// them, and could not start one at the limit.
func warmThreads() {
	const n = 32
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		log.Fatal(err)
	}
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, _ = syscall.Read(fds[0], make([]byte, 1)) // blocks its thread
		}()
	}
	time.Sleep(100 * time.Millisecond) // Go gives the goroutines threads one after another
	for range n {
		_, _ = syscall.Write(fds[1], []byte{0})
	}
	wg.Wait()
}

// failStart ends or delays a child before it is ready.
func failStart(o *programOptions) {
	tell("init", "")
	time.Sleep(o.Init)
	if o.FailAgain {
		if f, err := os.OpenFile(o.Flag+slotOf(), os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			_ = f.Close()
			return
		}
	}
	if o.FailIf != "" {
		if _, err := os.Stat(o.FailIf); err != nil {
			return
		}
	}
	switch o.FailStart {
	case "exit", "exit" + slotOf():
		os.Exit(7)
	case "hang", "hang" + slotOf():
		select {}
	}
}

func slotOf() string { return strings.Fields(os.Getenv("FIBER_PREFORK_CHILD"))[2] }

func routes(app *fiber.App) {
	app.Get("/", func(c fiber.Ctx) error { return c.SendString(strconv.Itoa(os.Getpid())) })
	app.Get("/sleep/:ms", func(c fiber.Ctx) error {
		tell("sleeping", "%s", c.Params("ms"))
		time.Sleep(time.Duration(fiber.Params[int](c, "ms")) * time.Millisecond)
		return c.SendString("slept")
	})
	app.Get("/timeout", timeout.New(func(c fiber.Ctx) error {
		tell("sleeping", "until the timeout")
		time.Sleep(300 * time.Millisecond)
		return c.SendString("late")
	}, timeout.Config{Timeout: 200 * time.Millisecond}))
	app.Get("/exit/:code", func(c fiber.Ctx) error {
		os.Exit(fiber.Params[int](c, "code"))
		return nil
	})
	app.Get("/panic", func(fiber.Ctx) error {
		go func() { panic("outside a handler") }()
		select {}
	})
	app.Get("/spin", func(fiber.Ctx) error {
		tell("spinning", "")
		for i := 0; ; i++ { // it hangs the process
			_ = i
		}
	})
	app.Get("/alloc", func(c fiber.Ctx) error {
		var hold [][]byte
		for range 64 { // 1 GiB: far above the limit, far below the machine's
			b := make([]byte, 16<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			hold = append(hold, b)
		}
		return c.SendString(strconv.Itoa(len(hold)))
	})
	app.Get("/gomaxprocs", func(c fiber.Ctx) error { return c.SendString(os.Getenv("GOMAXPROCS")) })
	app.Get("/ischild", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprint(prefork.IsChild(), fiber.IsChild()))
	})
	app.Get("/id", func(c fiber.Ctx) error {
		groups, err := os.Getgroups()
		if err != nil {
			return err
		}
		return c.SendString(fmt.Sprint(os.Getuid(), os.Getgid(), groups))
	})
	app.Get("/env", func(c fiber.Ctx) error { return c.SendString(strings.Join(os.Environ(), "\n")) })
}

// finish tells how Listen ended and ends main as most programs do.
func finish(o *programOptions, err error) {
	tell("returned", "%v", err)
	if o.At == "short" && !prefork.IsChild() {
		<-told
	}
	time.Sleep(o.AfterListen)
	var failure *prefork.ChildError
	if errors.As(err, &failure) {
		tell("childerror", "slot=%d pid=%d status=%s", failure.Slot, failure.PID, failure.Status)
	}
	for _, sentinel := range []error{
		prefork.ErrChildStart, prefork.ErrChildExited, prefork.ErrRecoveryLimit, prefork.ErrInvalidConfig,
		prefork.ErrReuseportUnsupported, prefork.ErrAlreadyRunning, syscall.EADDRINUSE, syscall.EACCES, context.DeadlineExceeded,
	} {
		if errors.Is(err, sentinel) {
			tell("is", "%v", sentinel)
		}
	}
	if err != nil {
		os.Exit(1)
	}
}

// background listens on another goroutine while main waits for a signal, as
// Fiber's documentation shows it.
func background(o *programOptions) {
	app := newApp(o)
	go func() {
		if err := app.Listen(o.Addr, o.ListenConfig); err != nil {
			log.Fatal(err)
		}
	}()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	<-c
	tell("main", "signalled")
	err := app.Shutdown()
	tell("main", "shutdown %v", err)
}

// again serves one app several times, the first of which fails.
func again(o *programOptions) {
	if prefork.IsChild() {
		if f, err := os.OpenFile(o.Flag, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			_ = f.Close()
			os.Exit(7)
		}
	}
	app := newApp(o)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	over := make(chan struct{})
	go func() {
		for range 3 {
			<-c
			tell("shutdown", "%v", app.Shutdown())
		}
		close(over)
	}()
	listen := func() error { return app.Listen(o.Addr, o.ListenConfig) }
	tell("first", "%v", listen())
	for range 2 {
		if err := listen(); err != nil {
			log.Fatal(err)
		}
		if prefork.IsChild() {
			return
		}
	}
	o.EnablePrefork = false
	app.Get("/last", func(c fiber.Ctx) error { return nil })
	if err := listen(); err != nil {
		log.Fatal(err)
	}
	<-over
}

// nested answers with what the same program is when a child runs it.
func nested(o *programOptions) {
	if os.Getenv("PREFORK_TEST_NESTED") != "" {
		fmt.Println(prefork.IsChild(), fiber.IsChild())
		return
	}
	app := newApp(o)
	app.Get("/nested", func(c fiber.Ctx) error {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "PREFORK_TEST_NESTED=1")
		out, err := cmd.Output()
		if err != nil {
			return err
		}
		return c.Send(out)
	})
	finish(o, app.Listen(o.Addr, o.ListenConfig))
}
