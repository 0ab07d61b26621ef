#!/bin/sh
# Sees to it that there is a C compiler: the race detector is linked through
# cgo. Installs gcc where that is possible without asking; else says what is
# missing. The tests never run without -race because of it.
set -eu

cc=$(go env CC)
works() { echo '#include <stdlib.h>' | $cc -x c -fsyntax-only - 2>/dev/null; }

works && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "no C compiler ($cc) for the race detector: installing gcc" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2
	apt-get install -qq -y --no-install-recommends gcc libc6-dev >&2
	works && exit
fi
echo "'$cc' cannot compile a C program: go test -race needs cgo and with it a C compiler and the" \
	"C library's headers. Install gcc or clang (Debian: gcc libc6-dev), or name yours with CC=." >&2
exit 1
