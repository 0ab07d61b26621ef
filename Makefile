# `make` lists the targets. They need Go and nothing else, but for the race
# detector of `make test`, which needs a C compiler: see scripts/need-cc.sh.
# The linters are built from the versions in tools/go.mod into bin/.

.NOTPARALLEL:
.PHONY: help run bench test cover stress fuzz fmt lint tidy vet gofumpt staticcheck golangci cross ci tools cc

# A number of runs per target and not a time: with a time, go test before 1.27
# now and then fails with "context deadline exceeded" when it is up (go.dev/issue/75804).
FUZZTIME = 200000x

CROSS = linux/arm64 darwin/arm64 windows/amd64 freebsd/amd64 openbsd/amd64 netbsd/amd64 \
	dragonfly/amd64 solaris/amd64 illumos/amd64 aix/ppc64

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: ## run examples/hello
	go run ./examples/hello

bench: ## measure side by side with others: under 10 minutes, writes docs/benchmarks.md
	go -C bench run . -out ../docs

# Processes that the tests start write their counters too: go test sets
# GOCOVERDIR, and takes in what it finds there when the tests are over. Tests
# wait more than they work: more of them run at a time than there are cores.
test: cc ## all tests with the race detector, and the coverage, children included
	@rm -rf coverage && mkdir coverage
	go test -race -count=1 -parallel=6 -timeout=20m -covermode=atomic -coverpkg=./... -coverprofile=coverage/all ./...
	@grep -v /examples/ coverage/all >coverage/profile
	@go tool cover -func=coverage/profile >coverage/functions
	@tail -n 1 coverage/functions
	go -C bench test -count=1 ./...

cover: test ## test, and write coverage/index.html
	go tool cover -html=coverage/profile -o coverage/index.html

stress: cc ## every test 60 times: hunts for races and flakes, takes long
	go test -race -count=20 -cpu=1,2,4 -parallel=6 -timeout=12h ./...

fuzz: ## a short run of every fuzz target
	@FUZZTIME=$(FUZZTIME) sh scripts/fuzz.sh

fmt: tools ## format the code
	bin/golangci-lint fmt
	cd bench && ../bin/golangci-lint fmt

lint: tidy vet gofumpt staticcheck golangci ## every check that runs nothing

tidy:
	go mod tidy -diff
	go -C bench mod tidy -diff

vet:
	go vet ./...
	go -C bench vet ./...

gofumpt: tools
	@echo bin/gofumpt -l .; files=$$(bin/gofumpt -l .) && if [ -n "$$files" ]; then \
		echo "not formatted (make fmt):" $$files >&2; exit 1; fi

staticcheck: tools
	bin/staticcheck ./...
	cd bench && ../bin/staticcheck ./...

golangci: tools
	bin/golangci-lint run ./...
	cd bench && ../bin/golangci-lint run ./...

cross: ## vet the code for every platform that it builds on
	@failed=; for target in $(CROSS); do \
		echo "CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go vet ./..."; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go vet ./... || failed="$$failed $$target"; \
	done; if [ -n "$$failed" ]; then echo "cross failed:$$failed" >&2; exit 1; fi

ci: lint cross fuzz test ## everything that must pass before a change lands
	@echo "ci: lint, cross, fuzz and test passed"

tools:
	@go -C tools build -o ../bin/ tool

cc:
	@sh scripts/need-cc.sh
