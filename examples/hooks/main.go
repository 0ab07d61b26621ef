// Hooks prints what the master sees of its children: started, ready, ended,
// replaced. They are the place for metrics and alarms.
//
//	go run ./examples/hooks
//
// Try, in another terminal:
//
//	curl http://127.0.0.1:3000/          # who answers
//	curl http://127.0.0.1:3000/crash     # that child exits with status 3
//	kill -9 <a child>
//	kill <the master>
package main

import (
	"cmp"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

func main() {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:3000")

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprintf("hello from pid %d\n", os.Getpid()))
	})
	app.Get("/crash", func(fiber.Ctx) error {
		os.Exit(3)
		return nil
	})

	hooks := app.Hooks()
	hooks.OnFork(func(pid int) error {
		fmt.Printf("OnFork: pid %d\n", pid)
		return nil
	})
	hooks.OnChildReady(func(c prefork.Child) error {
		fmt.Printf("OnChildReady: slot %d pid %d\n", c.Slot, c.PID)
		return nil
	})
	hooks.OnChildExit(func(e prefork.ChildExit) error {
		fmt.Printf("OnChildExit: slot %d pid %d: %s after %v, asked: %t\n",
			e.Slot, e.PID, e.Status, e.Uptime.Round(time.Millisecond), e.Asked)
		return nil
	})
	hooks.OnChildRecover(func(oldPID, newPID int) error {
		fmt.Printf("OnChildRecover: pid %d has taken the place of pid %d\n", newPID, oldPID)
		for _, c := range app.Children() {
			fmt.Printf("  slot %d: pid %d, %s, %d recoveries\n", c.Slot, c.PID, c.State, c.Recoveries)
		}
		return nil
	})
	hooks.OnListen(func(data fiber.ListenData) error {
		fmt.Printf("OnListen: master %d, children %d\n", data.PID, data.ChildPIDs)
		return nil
	})

	err := app.Listen(addr, prefork.ListenConfig{EnablePrefork: true, DisableStartupMessage: true})
	if err != nil {
		log.Fatal(err)
	}
}
