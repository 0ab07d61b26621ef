// Custom-listener serves a listener of the program's own: a wrapper that
// limits how many connections each child has open.
//
// prefork.NewListener returns what is right in either kind of process, so the
// same lines work in the master and in the children.
//
//	go run ./examples/custom-listener
//
// Try, in another terminal. The handler takes a second, each child serves two
// connections at a time, so six requests to two children take two seconds or more:
//
//	time (for i in 1 2 3 4 5 6; do curl -s http://127.0.0.1:3000/ & done; wait)
//	kill <the master>
package main

import (
	"cmp"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

const perChild = 2

func main() {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:3000")

	ln, err := prefork.NewListener("tcp4", addr)
	if err != nil {
		log.Fatal(err)
	}

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		time.Sleep(time.Second)
		return c.SendString(fmt.Sprintf("served by pid %d\n", os.Getpid()))
	})

	if err := app.Listener(limit(ln, perChild), prefork.ListenConfig{EnablePrefork: true, Children: 2}); err != nil {
		log.Fatal(err)
	}
}

// limited is a listener with at most so many connections open.
type limited struct {
	net.Listener

	free   chan struct{} // one element for each connection that may be open
	closed chan struct{}
	once   sync.Once
}

func limit(ln net.Listener, n int) *limited {
	return &limited{Listener: ln, free: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept waits until a connection may be opened, then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed: // do not wait for a place in a server that ends
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &counted{Conn: conn, release: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn

	release func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}
