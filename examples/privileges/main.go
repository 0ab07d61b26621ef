// Privileges binds a port as root and serves it as somebody else: the master
// stays root, the children do not.
//
//	go build -o bin/privileges ./examples/privileges
//	sudo bin/privileges
//
// Try, in another terminal. RUN_AS sets another user, ADDR another address:
//
//	curl http://127.0.0.1:80/
//	ps -o pid,user,args -C privileges
//	sudo kill <the master>
package main

import (
	"cmp"
	"fmt"
	"log"
	"os"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

func main() {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:80")

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		groups, err := os.Getgroups()
		if err != nil {
			return err
		}
		return c.SendString(fmt.Sprintf("pid %d: user %d, group %d, other groups %d\n",
			os.Getpid(), os.Getuid(), os.Getgid(), groups))
	})

	err := app.Listen(addr, prefork.ListenConfig{
		EnablePrefork:   true,
		ChildCredential: prefork.Credential{User: cmp.Or(os.Getenv("RUN_AS"), "nobody")},
	})
	if err != nil {
		log.Fatal(err)
	}
}
