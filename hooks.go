package prefork

// Hooks: Fiber's, and those that only a master has. Handlers of the latter run
// one after another on a goroutine of their own, so that they may call
// anything, App.Shutdown included. When they run is up to prefork.go.

import (
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/gofiber/fiber/v3"
)

type (
	// OnChildReadyHandler gets the child that has said that it accepts connections.
	OnChildReadyHandler = func(Child) error
	// OnChildExitHandler gets how a child ended.
	OnChildExitHandler = func(ChildExit) error
	// OnChildRecoverHandler gets the process ids of a child that died and of
	// the one that has taken its place and is ready.
	OnChildRecoverHandler = func(oldPID, newPID int) error
	// OnChildHangHandler gets a child that has reported nothing for
	// ListenConfig.HangTimeout.
	OnChildHangHandler = func(Child) error
)

// ChildExit says how a child ended.
type ChildExit struct {
	Slot       int
	PID        int
	Generation int
	// ExitCode is the child's exit status, -1 if a signal ended it.
	ExitCode int
	// Signal is the signal that ended it, nil if it exited.
	Signal os.Signal
	// Status says the same in words: "exit status 3", "signal: killed".
	Status string
	// Uptime is how long the process lived.
	Uptime time.Duration
	// Asked is true when the master had asked it to go. A child that drains
	// by itself, by a signal or App.Shutdown, was not asked.
	Asked bool
}

// Hooks registers handlers. It embeds Fiber's hooks; those that prefork gives
// another meaning or more data are documented here. Handlers may be
// registered by any goroutine at any time. Errors that handlers of the hooks
// below return are logged, but for OnListen's: Fiber panics with those.
type Hooks struct {
	*fiber.Hooks

	app       *App
	mu        sync.Mutex
	onFork    []fiber.OnForkHandler
	onReady   []OnChildReadyHandler
	onExit    []OnChildExitHandler
	onRecover []OnChildRecoverHandler
	onHang    []OnChildHangHandler
}

// OnListen registers handlers that run once, in the master, after every child
// is ready. Their data has Prefork, ProcessCount (the number of children),
// ChildPIDs and the port that was resolved. Handlers that are registered with
// the embedded Fiber app get Fiber's data: no prefork, no children. An error
// makes Fiber panic, after the children were drained.
func (h *Hooks) OnListen(handlers ...fiber.OnListenHandler) {
	for _, handler := range handlers {
		h.Hooks.OnListen(func(data fiber.ListenData) error {
			h.app.describe(&data)
			return handler(data)
		})
	}
}

// OnFork registers handlers that run in the master for each child that was
// started, recoveries included, with its process id.
func (h *Hooks) OnFork(handlers ...fiber.OnForkHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onFork = append(h.onFork, handlers...)
}

// OnChildReady registers handlers that run in the master for each child that
// has become ready.
func (h *Hooks) OnChildReady(handlers ...OnChildReadyHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onReady = append(h.onReady, handlers...)
}

// OnChildExit registers handlers that run in the master for each child that
// has ended, asked or not.
func (h *Hooks) OnChildExit(handlers ...OnChildExitHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onExit = append(h.onExit, handlers...)
}

// OnChildRecover registers handlers that run in the master when the
// replacement of a child that died has become ready.
func (h *Hooks) OnChildRecover(handlers ...OnChildRecoverHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onRecover = append(h.onRecover, handlers...)
}

// OnChildHang registers handlers that run in the master for each child that is
// ended because it has reported nothing for ListenConfig.HangTimeout.
func (h *Hooks) OnChildHang(handlers ...OnChildHangHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onHang = append(h.onHang, handlers...)
}

func (h *Hooks) log() logger {
	if m := h.app.master(); m != nil {
		return m.log
	}
	return logger{}
}

func (h *Hooks) forked(early []fiber.OnForkHandler, pid int) {
	h.mu.Lock()
	handlers := slices.Concat(early, h.onFork)
	h.mu.Unlock()
	runHandlers(h.log(), "OnFork", handlers, pid)
}

func (h *Hooks) ready(c Child) {
	h.mu.Lock()
	handlers := slices.Clone(h.onReady)
	h.mu.Unlock()
	runHandlers(h.log(), "OnChildReady", handlers, c)
}

func (h *Hooks) hung(c Child) {
	h.mu.Lock()
	handlers := slices.Clone(h.onHang)
	h.mu.Unlock()
	runHandlers(h.log(), "OnChildHang", handlers, c)
}

func (h *Hooks) exited(e ChildExit) {
	h.mu.Lock()
	handlers := slices.Clone(h.onExit)
	h.mu.Unlock()
	runHandlers(h.log(), "OnChildExit", handlers, e)
}

func (h *Hooks) recovered(oldPID, newPID int) {
	h.mu.Lock()
	handlers := slices.Clone(h.onRecover)
	h.mu.Unlock()
	for _, handler := range handlers {
		runHandlers(h.log(), "OnChildRecover", []func(int) error{func(pid int) error { return handler(oldPID, pid) }}, newPID)
	}
}

// runHandlers calls handlers with data. A handler that fails or panics is
// logged: it is not a reason to stop supervising.
func runHandlers[T any](l logger, name string, handlers []func(T) error, data T) {
	for _, handler := range handlers {
		func() {
			defer func() {
				if r := recover(); r != nil {
					l.errorf("%s handler panicked: %v\n%s", name, r, debug.Stack())
				}
			}()
			if err := handler(data); err != nil {
				l.errorf("%s handler: %v", name, err)
			}
		}()
	}
}

// forkHandlers reads the OnFork handlers that were registered with Fiber
// itself before Listen: Fiber has no public way to run them. With a Fiber that keeps them elsewhere it finds none.
func forkHandlers(h *fiber.Hooks) []fiber.OnForkHandler {
	field := reflect.ValueOf(h).Elem().FieldByName("onFork")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]fiber.OnForkHandler]() {
		return nil
	}
	return *(*[]fiber.OnForkHandler)(unsafe.Pointer(field.UnsafeAddr()))
}

// bannerEntries replaces what Fiber's banner says of a server that, to Fiber,
// is not preforked.
func (a *App) bannerEntries(data *fiber.PreStartupMessageData) error {
	m := a.master()
	if m == nil {
		return nil
	}
	a.describe(data.ListenData)
	colors := data.ColorScheme
	data.AddInfo("prefork", "Prefork", fmt.Sprintf("\t\t%sEnabled (%s)%s", colors.Blue, m.cfg.ListenerMode, colors.Reset), 7)
	data.AddInfo("process_count", "Total process count", fmt.Sprintf("%s%d%s", colors.Blue, data.ProcessCount, colors.Reset), 4)
	return nil
}

// describe adds to Fiber's data what Fiber cannot know.
func (a *App) describe(data *fiber.ListenData) {
	m := a.master()
	if m == nil {
		return
	}
	data.Prefork = true
	data.ProcessCount = len(a.Children())
	data.ChildPIDs = nil
	for _, c := range a.Children() {
		if c.PID != 0 {
			data.ChildPIDs = append(data.ChildPIDs, c.PID)
		}
	}
}
