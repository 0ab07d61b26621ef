// Unix-socket serves a unix socket instead of a port, for a proxy on the same
// machine. All children share the one listener.
//
//	go run ./examples/unix-socket
//
// Try, in another terminal (the program prints the path; ADDR changes it):
//
//	curl --unix-socket /tmp/prefork-example.sock http://localhost/
//	kill <the master>              # the file is removed
package main

import (
	"cmp"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

func main() {
	path := cmp.Or(os.Getenv("ADDR"), filepath.Join(os.TempDir(), "prefork-example.sock"))

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprintf("hello from pid %d\n", os.Getpid()))
	})

	err := app.Listen(path, prefork.ListenConfig{
		EnablePrefork:      true,
		ListenerNetwork:    fiber.NetworkUnix,
		UnixSocketFileMode: 0o660, // who may connect: the owner and the group
	})
	if err != nil {
		log.Fatal(err)
	}
}
