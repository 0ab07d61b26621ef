// Graceful shows the order in which a server ends: a request that takes 3 s is
// answered although the server is told to end meanwhile.
//
//	go run ./examples/graceful
//
// Try, in another terminal:
//
//	curl http://127.0.0.1:3000/slow &
//	sleep 1; kill <the master>     # or press Ctrl-C in the first terminal
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

func main() {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:3000")

	// The end of this context begins the drain. Without it SIGINT and SIGTERM
	// do the same; it is for programs in which other things end with it.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	app := prefork.New()

	app.Get("/slow", func(c fiber.Ctx) error {
		say("request begins")
		time.Sleep(3 * time.Second)
		say("request ends")
		return c.SendString("slow, but here\n")
	})

	// These run in the master and in every child: each ends what it opened.
	app.Hooks().OnPreShutdown(func() error {
		say("OnPreShutdown")
		return nil
	})
	app.Hooks().OnPostShutdown(func(err error) error {
		say("OnPostShutdown: %v", err)
		return nil
	})

	err := app.Listen(addr, prefork.ListenConfig{
		EnablePrefork:   true,
		GracefulContext: ctx,
		ShutdownTimeout: 8 * time.Second, // less than what the system gives you
	})
	say("Listen has returned: %v", err)
	if err != nil {
		log.Fatal(err)
	}
}

func say(format string, args ...any) {
	who := "master"
	if prefork.IsChild() {
		who = "child"
	}
	fmt.Printf("%s %-6s %d: %s\n", time.Now().Format("15:04:05.000"), who, os.Getpid(), fmt.Sprintf(format, args...))
}
