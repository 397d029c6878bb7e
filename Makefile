# The tools have modules of their own, so that what they need does not become what the service needs.
BUF  := go tool -modfile=tools/go.mod buf
LINT := go tool -modfile=tools/lint/go.mod golangci-lint

BASELINE := proto/baseline.binpb
ARGS     ?=
BENCH    ?= .
COUNT    ?= 1
FUZZTIME ?= 10s
FOR      ?= 10m

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build run test race test-aws examples bench fuzz soak cover gen baseline fmt lint proto-check gen-check check

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/instanced and bin/instancedctl
	go build -trimpath -o bin/ ./cmd/instanced ./cmd/instancedctl

run: build ## Serve with the simulator on 127.0.0.1:50051; ARGS="--flag ..." adds flags
	@exec bin/instanced serve $(ARGS)

test: ## Run all tests; needs nothing but Go
	go test -p 3 ./... # on two processors: tests wait more than they compute

race: ## Run all tests under the race detector; needs a C compiler
	CGO_ENABLED=1 go test -race ./...

test-aws: ## Hold real EC2 to the backend's contract; launches instances, with INSTANCED_TEST_AWS=1 only: docs/aws.md
	go test -v -count 1 -timeout 2h -run '^TestContractOnAWS$$' ./internal/backend/ec2

examples: ## Build, vet and test the examples, which are a module of their own
	cd examples && go build ./... && go vet ./... && go test ./...

bench: ## Run the benchmarks, for benchstat; BENCH=regexp and COUNT=n choose
	@go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -timeout 1h ./server/... ./internal/...

fuzz: ## Run every fuzz target for FUZZTIME each (default 10s)
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Z][A-Za-z0-9_]*' . | sort | while IFS=: read -r file func; do \
		target=$${func#func }; dir=$$(dirname "$$file"); \
		echo "fuzz $$dir $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$dir" </dev/null || exit 1; \
	done

soak: ## Kill, end, cut off and starve real processes under load, and more; FOR=duration each (default 10m)
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run '^TestSoak$$|^TestFloodsCost' ./internal/soak
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run '^TestMemoryIsFlat$$' ./internal/soak
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run 'CutAnywhere|HandedBetween|HostileMethodNames|ReconnectStorm|^TestParked$$' ./server
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run '^TestAFlippedBitOnDisk' ./internal/journal
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run '^TestEveryOutcomeIsOneOfSomeOneByOneOrder$$' ./internal/backend/ec2
	INSTANCED_SOAK=$(FOR) go test -v -count 1 -timeout 0 -run '^TestAJournalCanAlwaysBeWrittenAgain$$' ./internal/journal

cover: ## Measure test coverage, generated code left out, into coverage.out
	go test -coverprofile=coverage.out -coverpkg="$$(go list ./... | grep -v /gen/ | paste -sd, -)" ./...
	@go tool cover -func=coverage.out | tail -n 1

gen: ## Generate gen/ from proto/
	$(BUF) generate

baseline: ## Accept the schemas as they are: what breaks is measured against this from now on
	$(BUF) build --exclude-source-info -o $(BASELINE)

fmt: ## Format Go and proto files
	$(LINT) fmt
	$(BUF) format -w

lint: ## Check formatting, style, the import rule and the wording
	$(LINT) fmt --diff
	go vet ./...
	$(LINT) run
	cd examples && go tool -modfile=../tools/lint/go.mod golangci-lint run
	cd tools && go vet ./words && go test ./words && go run ./words ..

proto-check: ## Check the schemas: format, lint, nothing broken since the baseline
	$(BUF) format --diff --exit-code
	$(BUF) lint
	$(BUF) breaking --against $(BASELINE)
	$(BUF) breaking --against $(BASELINE) --config buf.storage.yaml

gen-check: gen ## Check that gen/ and the go.mod files are current (gen/ committed or staged)
	@! git status --porcelain gen | grep '^.[^ ]' || { echo 'gen/ differs from proto/: run "make gen" and commit it' >&2; exit 1; }
	go mod tidy -diff
	cd examples && go mod tidy -diff
	cd tools && go mod tidy -diff
	cd tools/lint && go mod tidy -diff
	cd tools/probe && go mod tidy -diff

check: lint proto-check gen-check race examples ## Run everything that CI runs
