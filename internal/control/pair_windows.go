package control

import (
	"errors"
	"os"
)

var errWindows = errors.New("no control channel on windows")

// Pair always fails here: prefork is refused on Windows before it is called.
func Pair() (*Conn, *os.File, error) { return nil, nil, errWindows }

// Open always fails here.
func Open(uintptr) (*Conn, error) { return nil, errWindows }
