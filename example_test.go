//go:build unix

package prefork_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

// A whole program: it serves from two children, asks itself once, and ends.
// TestMain runs this function in the children too, as a real main would be.
func ExampleApp_Listen() {
	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprint("served by a child: ", prefork.IsChild()))
	})

	app.Hooks().OnListen(func(data fiber.ListenData) error {
		go func() {
			resp, err := http.Get("http://" + data.Host + ":" + data.Port)
			if err != nil {
				fmt.Println(err)
				return
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			fmt.Println(string(body))
			http.DefaultClient.CloseIdleConnections()
			_ = app.Shutdown()
		}()
		return nil
	})

	err := app.Listen(os.Getenv("ADDR"), prefork.ListenConfig{
		EnablePrefork:         true,
		Children:              2,
		DisableStartupMessage: true,
		PreforkLogger:         silent{},
	})
	if !prefork.IsChild() {
		fmt.Println("ended:", err)
	}

	// Output:
	// served by a child: true
	// ended: <nil>
}

type silent struct{}

func (silent) Printf(string, ...any) {}

func ExampleNew() {
	app := prefork.New(fiber.Config{AppName: "shop"})
	app.Get("/", func(c fiber.Ctx) error { return c.SendString("hello") })
	fmt.Println(app.Config().AppName)
	// Output: shop
}

func ExampleWrap() {
	existing := fiber.New()
	app := prefork.Wrap(existing)
	fmt.Println(app.App == existing)
	// Output: true
}

func ExampleIsChild() {
	if !prefork.IsChild() {
		fmt.Println("migrate the database here: once, in the master")
	}
	// Output: migrate the database here: once, in the master
}

func ExampleNewListener() {
	ln, err := prefork.NewListener("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	// Wrap it as you like, then: app.Listener(ln, prefork.ListenConfig{EnablePrefork: true})
	fmt.Println(ln.Addr().Network())
	fmt.Println(ln.Close())
	// Output:
	// tcp
	// <nil>
}

func ExampleApp_Children() {
	app := prefork.New()
	for _, child := range app.Children() {
		fmt.Println(child.Slot, child.PID, child.State, child.Recoveries)
	}
	fmt.Println(len(app.Children()), "children before Listen")
	// Output: 0 children before Listen
}

func ExampleApp_ShutdownWithContext() {
	app := prefork.New()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println(app.ShutdownWithContext(ctx))
	// Output: <nil>
}

func ExampleHooks() {
	app := prefork.New()
	app.Hooks().OnChildExit(func(e prefork.ChildExit) error {
		if !e.Asked {
			fmt.Printf("slot %d: pid %d: %s\n", e.Slot, e.PID, e.Status) // tell somebody
		}
		return nil
	})
	app.Hooks().OnChildRecover(func(oldPID, newPID int) error {
		fmt.Println(oldPID, "is replaced by", newPID)
		return nil
	})
	fmt.Println("registered")
	// Output: registered
}

func ExampleApp_Listener() {
	ln, err := prefork.NewListener("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	app := prefork.New()
	app.Hooks().OnListen(func(fiber.ListenData) error { go func() { _ = app.Shutdown() }(); return nil })
	err = app.Listener(ln, prefork.ListenConfig{Children: -1, EnablePrefork: true})
	fmt.Println(err)
	fmt.Println(ln.Close())
	// Output:
	// prefork: invalid configuration: Children = -1: want 0 to 1024
	// <nil>
}
