// Command testapp is what the tests of upgrades run: they build it several
// times, so that the versions are really different programs. It answers with
// its version and pid, and does what the master is asked for on standard input.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

// version, fail and slow are set by the linker. fail is how this version is
// broken: "" or "start" (a child does not start). slow is how long main takes
// in the master before it listens.
var version, fail, slow string

func main() {
	app := prefork.New()
	app.Get("/", func(c fiber.Ctx) error { return c.SendString(fmt.Sprintf("%s %d", version, os.Getpid())) })
	app.Get("/ppid", func(c fiber.Ctx) error { return c.SendString(fmt.Sprint(os.Getppid())) })
	app.Hooks().OnListen(func(d fiber.ListenData) error {
		fmt.Printf("EVENT %d listen %s:%s version=%s children=%v\n", os.Getpid(), d.Host, d.Port, version, d.ChildPIDs)
		go operate(app)
		return nil
	})
	app.Hooks().OnChildReady(func(c prefork.Child) error {
		fmt.Printf("EVENT %d ready %d %d %d %s\n", os.Getpid(), c.Slot, c.PID, c.Recoveries, c.State)
		return nil
	})
	app.Hooks().OnChildExit(func(e prefork.ChildExit) error {
		fmt.Printf("EVENT %d exit %d %d code=%d asked=%t status=%s\n", os.Getpid(), e.Slot, e.PID, e.ExitCode, e.Asked, e.Status)
		return nil
	})
	if prefork.IsChild() && fail == "start" {
		os.Exit(9)
	}
	if d, err := time.ParseDuration(slow); err == nil && !prefork.IsChild() {
		fmt.Printf("EVENT %d slow\n", os.Getpid())
		time.Sleep(d)
	}
	cfg := prefork.ListenConfig{
		EnablePrefork: true, DisableStartupMessage: true, Children: 2,
		ListenerNetwork: "tcp", ChildStartTimeout: 20 * time.Second,
	}
	if n, err := strconv.Atoi(os.Getenv("TESTAPP_CHILDREN")); err == nil {
		cfg.Children = n
	}
	switch os.Getenv("TESTAPP_MODE") {
	case "shared":
		cfg.ListenerMode = prefork.ListenerModeShared
	case "unix":
		cfg.ListenerNetwork = "unix"
	}
	addr := os.Getenv("TESTAPP_ADDR")
	if path := os.Getenv("TESTAPP_ADDR_FILE"); path != "" {
		b, err := os.ReadFile(path) //nolint:gosec // the test's
		if err != nil {
			log.Fatal(err)
		}
		addr = string(b)
	}
	if dir := os.Getenv("TESTAPP_TLS"); dir != "" {
		cfg.CertFile, cfg.CertKeyFile = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	}
	cfg.PreforkRecoverInterval, _ = time.ParseDuration(os.Getenv("TESTAPP_INTERVAL"))
	var err error
	if os.Getenv("TESTAPP_LISTENER") == "" {
		err = app.Listen(addr, cfg)
	} else {
		var ln net.Listener
		if ln, err = prefork.NewListener(cfg.ListenerNetwork, addr); err == nil {
			err = app.Listener(ln, cfg)
		}
	}
	fmt.Printf("EVENT %d returned %v\n", os.Getpid(), err)
	if err != nil {
		log.Fatal(err)
	}
}

func operate(app *prefork.App) {
	for {
		// Not ahead: what comes after an upgrade is the next program's.
		var line []byte
		for {
			b := make([]byte, 1)
			if n, err := os.Stdin.Read(b); n == 0 || err != nil {
				return
			}
			if b[0] == '\n' {
				break
			}
			line = append(line, b[0])
		}
		var n int
		var err error
		switch string(line) {
		case "reload":
			err = app.Reload(context.Background())
		case "upgrade":
			err = app.Upgrade(context.Background())
		case "reloads":
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() { _ = app.Reload(context.Background()) })
			}
			all.Wait()
		case "children":
			ready, children := 0, app.Children()
			for _, c := range children {
				if c.State == prefork.ChildReady {
					ready++
				}
			}
			size := len(children)
			for _, c := range children {
				if c.State == prefork.ChildDraining {
					size-- // of a slot that is removed
				}
			}
			fmt.Printf("EVENT %d children ready=%d size=%d\n", os.Getpid(), ready, size)
			continue
		case "status":
			fds, _ := os.ReadDir("/proc/self/fd")
			fmt.Printf("EVENT %d status fds=%d\n", os.Getpid(), len(fds))
			continue
		default:
			if _, err = fmt.Sscanf(string(line), "scale %d", &n); err == nil {
				err = app.Scale(n)
			}
		}
		fmt.Printf("EVENT %d operated %v\n", os.Getpid(), err)
	}
}
