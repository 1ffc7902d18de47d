# The same commands for people and for CI. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO  ?= cargo
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET := $(CURDIR)/target
BIN    := $(TARGET)/bin
# State of the stack that `make run` starts: a folder of its own, so that it disturbs nothing else on the machine.
STATE  ?= $(CURDIR)/state
# What the runtime says in --version: the commit of the last change to what it is made of, so that it is not built again for others.
export BERTH_COMMIT := $(shell git log -1 --format=%h -- runtime Cargo.toml Cargo.lock 2>/dev/null)
# The runtime suite runs on another runtime with RUNTIME=runc, or the path of one.
RUNTIME ?=

.PHONY: help deps deps-test deps-vm build install run stop test unit integration test-cri test-runtime soak-stack soak-engine soak-cri soak-runtime soak-supervisor fuzz-runtime fuzz-engine fuzz-supervisor fuzz-build test-vm vm-shell lint fmt doc bench bench-runtime bench-density bench-images bench-network bench-cri bench-build clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

deps: ## install what building needs (Debian packages)
	@.ci/deps build

deps-vm: ## install what the test VM needs (Debian packages)
	@.ci/deps vm

deps-test: ## install what tests and benches need: peers, image tools (Debian packages)
	@.ci/deps test

build: deps ## build the five programs into target/bin
	$(CARGO) build --profile small -p runtime -p shim
	$(CARGO) build --release -p supervisor -p engine -p cli
	@mkdir -p $(BIN)
	@# install(1) replaces a file under a running program instead of writing into it.
	@install -m 0755 $(TARGET)/$(HOST)/small/berth-{runtime,shim} $(TARGET)/$(HOST)/release/{berth,berth-engine,berth-supervisor} $(BIN)/
	@ln -sf berth-shim $(BIN)/containerd-shim-berth-v1
	@ls -l $(BIN) | awk 'NR > 1 { print $$5, $$9, $$10, $$11 }'

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
install: build ## install programs, systemd units and configuration below PREFIX (/usr/local), SYSCONFDIR (/etc), DESTDIR
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BIN)/berth $(BIN)/berth-{engine,supervisor,shim,runtime} $(DESTDIR)$(PREFIX)/bin/
	ln -sf berth-shim $(DESTDIR)$(PREFIX)/bin/containerd-shim-berth-v1
	@.ci/install-units "$(DESTDIR)" $(PREFIX)/bin $(SYSCONFDIR) $(UNITDIR) $(PREFIX)/lib/sysusers.d $(BIN)/berth-supervisor

run: build ## build, start a stack of its own, run a container in it, leave it running
	@.ci/stack run $(BIN) $(STATE)

stop: ## end the stack that `make run` left running, containers included
	@.ci/stack stop $(BIN) $(STATE)

test: deps-test build ## everything: unit and integration tests, and a look at what they left behind
	@.ci/test

unit: deps ## unit tests only; no root needed
	$(CARGO) test --workspace --lib --bins

integration: deps-test build ## the suites that drive the real programs
	$(CARGO) test -p integration-tests

test-cri: deps-test build ## the CRI suite; CRI=containerd: on Debian's containerd, what differs is skipped with its reason
	$(CARGO) test -p integration-tests --test cri

test-runtime: deps-test ## the runtime suite, on berth-runtime or on another, by RUNTIME=runc or its path
	RUNTIME=$(RUNTIME) $(if $(filter crun,$(notdir $(RUNTIME))),.ci/on-cgroup1) $(CARGO) test -p runtime --tests

# Each race for so many seconds, or 10,000 tries.
BERTH_RACE_SECONDS ?= 60
soak-runtime: deps-test ## commands killed before every single system call, and the races of the security suite: minutes, not seconds
	BERTH_FAULTS=all $(CARGO) test -p runtime --test suite faults -- --show-output
	BERTH_RACE_SECONDS=$(BERTH_RACE_SECONDS) $(CARGO) test -p runtime --test suite -- security::races security::attacker --nocapture --test-threads 2

# The same choices again with BERTH_SOAK_SEED, which the test prints.
BERTH_SOAK_SECONDS ?= 120
soak-stack: deps-test build ## 16 clients on hundreds of containers while daemons and shims are killed at random, for BERTH_SOAK_SECONDS
	BERTH_SOAK_SECONDS=$(BERTH_SOAK_SECONDS) $(CARGO) test -p integration-tests --test chaos -- --nocapture

# As long as that, too; and the same choices again with BERTH_SOAK_SEED.
soak-engine: deps-test build ## the engine killed at random while clients do everything, and during the conformance cases, for BERTH_SOAK_SECONDS
	BERTH_SOAK_SECONDS=$(BERTH_SOAK_SECONDS) $(CARGO) test -p integration-tests --test conformance killed -- --nocapture --test-threads 1

# As long as that, too; and the same choices again with BERTH_DAY_SEED.
soak-cri: deps-test build ## a node's day: pods come and go with all that a kubelet does, daemon and shims are killed, for BERTH_SOAK_SECONDS
	BERTH_DAY_SECONDS=$(BERTH_SOAK_SECONDS) $(CARGO) test -p integration-tests --test cri day::a_nodes_day -- --nocapture

# Which boots (init, systemd), suites (runtime, stack, volumes, networks, cri) and tests: make test-vm BOOT=systemd SUITE=runtime FILTER='v2:: --nocapture'
BOOT ?=
SUITE ?=
export FILTER SUITE
test-vm: deps-vm ## the runtime suite and a small one of the stack in VMs with Debian's kernel and cgroup v2: a bare init; systemd and AppArmor (.ci/vm/run)
	@.ci/vm/run $(BOOT)

vm-shell: deps-vm ## a shell in the test VM (BOOT=init or systemd)
	@VM_SHELL=1 .ci/vm/run $(or $(BOOT),systemd)

# So many lives.
BERTH_SOAK ?= 5000
soak-supervisor: deps-test ## the supervisor's memory over many lives of containers
	$(CARGO) build -p shim -p runtime
	BERTH_SOAK=$(BERTH_SOAK) $(CARGO) test -p supervisor --test tasks memory -- --nocapture

BERTH_FUZZ_SECONDS ?= 600
fuzz-runtime: deps ## configurations that nobody would write, for BERTH_FUZZ_SECONDS; BERTH_FUZZ_SEED tries one again
	BERTH_FUZZ_SECONDS=$(BERTH_FUZZ_SECONDS) $(CARGO) test -p runtime --bin berth-runtime plan::fuzz -- --nocapture

fuzz-engine: deps-test build ## bent requests and thousands of clients that misbehave, for BERTH_FUZZ_SECONDS (300); BERTH_FUZZ_SEED tries one again
	BERTH_FUZZ_SECONDS=$${BERTH_FUZZ_SECONDS:-300} BERTH_ABUSE=$${BERTH_ABUSE:-3000} $(CARGO) test -p engine --test system -- --nocapture fuzz abuse

fuzz-supervisor: deps ## every request of CRI bent, and anything that clients of its streams might send, for BERTH_FUZZ_SECONDS each; BERTH_FUZZ_SEED tries one again
	BERTH_FUZZ_SECONDS=$(BERTH_FUZZ_SECONDS) $(CARGO) test -p supervisor --bin berth-supervisor -- --nocapture cri::fuzz::fuzz cri::streaming::tests::hostile::fuzz

fuzz-build: deps ## Dockerfiles and graphs of steps that nobody would write, for BERTH_FUZZ_SECONDS each; BERTH_FUZZ_SEED tries one again
	BERTH_FUZZ_SECONDS=$(BERTH_FUZZ_SECONDS) $(CARGO) test -p dockerfile --lib -- --nocapture parse::fuzz
	BERTH_FUZZ_SECONDS=$(BERTH_FUZZ_SECONDS) $(CARGO) test -p solver --lib -- --nocapture graph::tests::fuzz

lint: deps ## rustfmt, clippy, rustdoc: no warning allowed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --document-private-items

fmt: ## format the code
	$(CARGO) fmt --all

doc: ## build the documentation of the code
	$(CARGO) doc --workspace --no-deps --document-private-items

bench: deps-test build ## Berth beside the peers that are installed, same work, same run: a table of ratios
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench

bench-runtime: deps-test build ## the runtime's part of it: beside runc, crun and youki, and beside the bare system calls
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench runtime

bench-density: deps-test build ## 1,000 sleeping containers: time, memory, CPU at rest; memory of containerd's beside
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench density

bench-images: deps-test build ## pull, push, save, load and commit beside dockerd, podman and containerd, from a registry on loopback
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench images

# Or some parts of it: PARTS="setup traffic names range".
PARTS ?=
bench-network: deps-test build ## networks: set-up, throughput, latency, names, port ranges, beside dockerd and beside links and rules made by hand
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench network $(PARTS)

bench-cri: deps-test build ## pods, containers, exec, lists, stats and memory over CRI, beside Debian's containerd
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench cri

bench-build: deps-test build ## builds beside dockerd's classic builder, its BuildKit, and buildah
	$(CARGO) build --release -p integration-tests
	$(TARGET)/$(HOST)/release/bench build

clean: ## remove what was built
	$(CARGO) clean
