//go:build unix

package prefork_test

import (
	"github.com/gofiber/fiber/v3"
)

type (
	fiberCtx        = fiber.Ctx
	fiberListenData = fiber.ListenData
)
