// Operate shows what can be changed while a server runs, without losing a
// request: its children, its executable, and how many children there are.
//
//	go build -ldflags '-X main.version=1' -o bin/operate ./examples/operate
//	bin/operate &
//	master=$!
//
// Try, with a second terminal for the client:
//
//	while curl -sS http://127.0.0.1:3000/; do sleep 0.2; done    # never fails
//
// New children, one after the other; open requests are answered by the old ones:
//
//	curl -s http://127.0.0.1:3000/slow &
//	kill -HUP $master
//
// Another version. Renamed over the old one: cp onto a program that runs fails.
// The pid of the master stays:
//
//	go build -ldflags '-X main.version=2' -o bin/operate.new ./examples/operate
//	mv bin/operate.new bin/operate
//	kill -USR2 $master
//
// One child more, one less:
//
//	kill -TTIN $master
//	kill -TTOU $master
//
// The same by methods, on a port that only the master opens:
//
//	curl http://127.0.0.1:3001/children
//	curl -X POST http://127.0.0.1:3001/reload
//	curl -X POST 'http://127.0.0.1:3001/scale?n=4'
//	curl -X POST http://127.0.0.1:3001/upgrade    # empty reply: who would send it is gone
//
// The end:
//
//	kill $master
package main

import (
	"cmp"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

var version = "dev" // set by the linker

func main() {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:3000")

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprintf("version %s from pid %d\n", version, os.Getpid()))
	})
	app.Get("/slow", func(c fiber.Ctx) error {
		time.Sleep(3 * time.Second)
		return c.SendString(fmt.Sprintf("slow, but here: version %s from pid %d\n", version, os.Getpid()))
	})

	if !prefork.IsChild() {
		// After an upgrade main comes here again, in the same process. The
		// port is free then: the system has closed this listener.
		go operator(app, cmp.Or(os.Getenv("OPERATOR"), "127.0.0.1:3001"))
	}

	err := app.Listen(addr, prefork.ListenConfig{
		EnablePrefork:         true,
		DisableStartupMessage: true,
		Children:              2,
		ReloadRollback:        true, // all children are of one version, also after a reload that failed
	})
	if err != nil {
		log.Fatal(err)
	}
}

// operator serves those who run the service: never open it to the world.
func operator(app *prefork.App, addr string) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /children", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "master %d, version %s\n", os.Getpid(), version)
		for _, c := range app.Children() {
			_, _ = fmt.Fprintf(w, "slot %d: pid %d, generation %d, %s\n", c.Slot, c.PID, c.Generation, c.State)
		}
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		answer(w, app.Reload(r.Context())) // when all old children are gone
	})
	mux.HandleFunc("POST /upgrade", func(w http.ResponseWriter, r *http.Request) {
		answer(w, app.Upgrade(r.Context())) // only if it fails
	})
	mux.HandleFunc("POST /scale", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("n"))
		if err == nil {
			err = app.Scale(n)
		}
		answer(w, err)
	})
	server := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	log.Print(server.ListenAndServe())
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = fmt.Fprintln(w, "done")
}
