package control

import (
	"errors"
	"os"
)

var errWindows = errors.New("no control channel on windows")

// Pair always fails here: prefork is refused on Windows before it is called.
func Pair() (*Conn, *os.File, error) { return nil, nil, errWindows }

// Open always fails here.
func Open(uintptr, ...byte) (*Conn, error) { return nil, errWindows }

// SendFD always fails here.
func (c *Conn) SendFD(Message, int) error { return errWindows }

// Keep always fails here.
func (c *Conn) Keep(bool) (int, error) { return -1, errWindows }

// Inherit always fails here.
func Inherit(uintptr) (*Conn, error) { return nil, errWindows }
