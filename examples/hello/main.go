// Hello is the smallest prefork server: an ordinary Fiber program in which two
// names have changed, fiber.New and fiber.ListenConfig.
//
//	go run ./examples/hello
//
// The program prints what to try in another terminal, with its own process ids.
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

func main() {
	addr := os.Getenv("ADDR")
	if addr == "" {
		addr = "127.0.0.1:3000"
	}

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprintf("hello from pid %d\n", os.Getpid()))
	})

	app.Hooks().OnListen(func(data fiber.ListenData) error {
		fmt.Printf(`
Try, in another terminal:

  curl http://%[1]s:%[2]s/   # a few times: the pids differ
  kill -9 %[3]d   # a child: it is replaced, the port stays open
  kill %[4]d      # the master: everything ends in order

`, data.Host, data.Port, data.ChildPIDs[0], data.PID)
		return nil
	})

	if err := app.Listen(addr, prefork.ListenConfig{EnablePrefork: true}); err != nil {
		log.Fatal(err)
	}
}
