#!/bin/sh
# Runs every fuzz target of every package for $FUZZTIME. go test takes one
# target of one package at a time.
set -eu

count=0
for package in $(go list ./...); do
	names=$(go test -list='^Fuzz' "$package")
	for name in $(echo "$names" | grep '^Fuzz' || true); do
		echo "fuzz $package $name"
		go test -run='^$' -fuzz="^$name\$" -fuzztime="${FUZZTIME:-200000x}" -timeout=10m "$package"
		count=$((count + 1))
	done
done
[ "$count" -gt 0 ] || {
	echo "no fuzz target found" >&2
	exit 1
}
