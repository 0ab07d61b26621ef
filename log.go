package prefork

// One line an event, prefixed, through Fiber's log package or through the
// PreforkLogger of the ListenConfig.

import (
	"strings"
	"unicode"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/log"
)

const logPrefix = "[prefork] "

// maxLines is how many lines wait for an output that blocks; more are lost.
const maxLines = 1000

// printable is what a child says, in one line of a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// logger writes the lines of one server. The zero value uses Fiber's log, at once.
type logger struct {
	custom fiber.PreforkLogger
	queue  *calls // writes later, so that output that blocks holds nobody up; nil = at once
}

func (l logger) infof(format string, args ...any) {
	l.write(log.Infof, format, args)
}

func (l logger) warnf(format string, args ...any) {
	l.write(log.Warnf, format, args)
}

func (l logger) errorf(format string, args ...any) {
	l.write(log.Errorf, format, args)
}

func (l logger) write(level func(string, ...any), format string, args []any) {
	if l.custom != nil {
		level = l.custom.Printf
	}
	if l.queue == nil {
		level(logPrefix+format, args...)
		return
	}
	l.queue.post(maxLines, func() { level(logPrefix+format, args...) })
}
