package report

import "errors"

type file = struct{}

var errWindows = errors.New("no report pages on windows")

// New always fails here: prefork is refused on Windows before it is called.
func New() (*Page, error) { return nil, errWindows }

// Open always fails here.
func Open(uintptr) (*Page, error) { return nil, errWindows }

// Forget does nothing here.
func (p *Page) Forget() {}

// Close does nothing here.
func (p *Page) Close() {}

// Keep always fails here.
func (p *Page) Keep(bool) (int, error) { return -1, errWindows }
