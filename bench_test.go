package prefork

// What the library adds to a request. `make bench` tells it too.

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"github.com/fiber-prefork/prefork/internal/report"
)

// requests is a connection on which a number of requests come, and whose
// answers nobody reads.
type requests struct {
	net.Conn // nil
	left     int
}

func (c *requests) Read(b []byte) (int, error) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	if c.left == 0 {
		return 0, io.EOF
	}
	c.left--
	return copy(b, request), nil
}

func (*requests) Write(b []byte) (int, error)      { return len(b), nil }
func (*requests) Close() error                     { return nil }
func (*requests) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*requests) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*requests) SetDeadline(time.Time) error      { return nil }
func (*requests) SetReadDeadline(time.Time) error  { return nil }
func (*requests) SetWriteDeadline(time.Time) error { return nil }

// requestServer returns the server of an app, or of a handler, and shows in
// that of a child; it is not one if in is nil.
func requestServer(tb testing.TB, handler fasthttp.RequestHandler, in func(*child, *fasthttp.Server)) *fasthttp.Server {
	tb.Helper()
	app := New()
	app.Get("/", func(c fiber.Ctx) error { return c.SendString("hello") })
	app.App.Handler()
	server := app.App.Server()
	if handler != nil {
		server.Handler = handler
	}
	if in != nil {
		page, err := report.New()
		require.NoError(tb, err)
		tb.Cleanup(page.Close)
		c := &child{app: app, in: &inheritance{page: page, busy: make(chan struct{}, 1)}}
		c.instrument(server)
		in(c, server)
	}
	return server
}

// BenchmarkRequest measures a request from a connection to its answer: in
// Fiber alone, in a child, and in a child that has a connection on which
// nothing was asked yet.
func BenchmarkRequest(b *testing.B) {
	for name, in := range map[string]func(*child, *fasthttp.Server){
		"fiber":   nil,
		"prefork": func(*child, *fasthttp.Server) {},
		"prefork-silent": func(_ *child, s *fasthttp.Server) {
			s.ConnState(&requests{}, fasthttp.StateNew)
		},
	} {
		b.Run(name, func(b *testing.B) {
			server := requestServer(b, nil, in)
			conn := &requests{left: b.N}
			if server.ConnState != nil {
				server.ConnState(conn, fasthttp.StateNew)
			}
			b.ReportAllocs()
			b.ResetTimer()
			require.NoError(b, server.ServeConn(conn))
		})
	}
}

// BenchmarkAdded measures what is added alone: it is lost in what a request
// takes.
func BenchmarkAdded(b *testing.B) {
	for name, silent := range map[string]bool{"prefork": false, "prefork-silent": true} {
		b.Run(name, func(b *testing.B) {
			var handler fasthttp.RequestHandler
			var state func(net.Conn, fasthttp.ConnState)
			requestServer(b, func(*fasthttp.RequestCtx) {}, func(_ *child, s *fasthttp.Server) {
				handler, state = s.Handler, s.ConnState
			})
			if silent {
				state(&requests{}, fasthttp.StateNew)
			}
			conn, ctx := &requests{}, &fasthttp.RequestCtx{}
			state(conn, fasthttp.StateNew)
			b.ReportAllocs()
			for b.Loop() {
				state(conn, fasthttp.StateActive)
				handler(ctx)
				state(conn, fasthttp.StateIdle)
			}
		})
	}
}

// TestRequestAllocatesNothing more than it does in Fiber.
func TestRequestAllocatesNothing(t *testing.T) {
	allocs := func(in func(*child, *fasthttp.Server)) float64 {
		server := requestServer(t, nil, in)
		return testing.AllocsPerRun(20, func() { _ = server.ServeConn(&requests{left: 1000}) })
	}
	alone, child := allocs(nil), allocs(func(*child, *fasthttp.Server) {})
	// With -race sync.Pool forgets some: Fiber allocates in every second request.
	assert.Less(t, child, alone+200, "in a thousand requests")
}

// BenchmarkAddedToConnection measures what is added to a connection that
// serves one request.
func BenchmarkAddedToConnection(b *testing.B) {
	var state func(net.Conn, fasthttp.ConnState)
	requestServer(b, func(*fasthttp.RequestCtx) {}, func(_ *child, s *fasthttp.Server) { state = s.ConnState })
	conns := make([]requests, 16)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		conn := &conns[i%len(conns)]
		state(conn, fasthttp.StateNew)
		state(conn, fasthttp.StateActive)
		state(conn, fasthttp.StateClosed)
	}
}
