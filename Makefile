# Everything that is done with this tree, by name. `make` alone lists it.

CARGO ?= cargo
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
export NGINX_SOURCE_DIR ?= /usr/share/nginx/src
export NGINX_BUILD_DIR ?= $(TARGET_DIR)/nginx/objs
MODULE := $(TARGET_DIR)/release/libngx_http_simplestreams_module.so
# Tools of cargo that are installed when they are missing.
TOOLS := $(TARGET_DIR)/tools
export PATH := $(PATH):$(TOOLS)/bin
DENY := cargo-deny --locked --workspace
DENY_CHECK := check --hide-inclusion-graph

.PHONY: help run test check module deny advisories sbom reproducible addon deb image bench pristine headers \
    soak valgrind asan fuzz nginx-tests clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24
	@echo
	@echo '  make run PORT=9443 ROOT=/srv/images   another port, your own tree (which is only read)'
	@echo '  make run LISTEN=0.0.0.0               for other machines too, not for this one alone'

run: ## serve a demonstration on https://localhost:8443 until Ctrl-C
	@packaging/deps.sh build run
	@$(MAKE) --no-print-directory module
	@packaging/run.sh $(MODULE)

test: ## run every check and test, with real clients and daemons (as root)
	@packaging/deps.sh build run test
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory module
	SIMPLESTREAMS_MODULE=$(MODULE) $(CARGO) test --no-fail-fast

check: headers ## check the form of the code: rustfmt, clippy; and its crates (see deny, advisories)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --test soak -- -D warnings
	@$(MAKE) --no-print-directory deny
	@if timeout 60 cargo-deny fetch db > /dev/null 2>&1; then $(DENY) $(DENY_CHECK) advisories; else \
	    echo 'advisories were not checked: their database cannot be reached; later: make advisories' >&2; fi

# Without optimization, for it runs for seconds and would compile for minutes.
deny: ## check licences, sources and versions of crates, with a cargo-deny that it installs
	@command -v cargo-deny > /dev/null || { \
	    $(CARGO) install --quiet --debug --locked --root $(TOOLS) --target-dir $(TOOLS)/build cargo-deny@0.20.2 && \
	    rm -r $(TOOLS)/build; }
	@$(CARGO) fetch --quiet --locked
	$(DENY) --offline $(DENY_CHECK) licenses bans sources

# They are a repository of their own, which not every machine can reach; check goes on without, and says so.
advisories: deny ## the same, and security advisories, which are fetched
	$(DENY) $(DENY_CHECK) advisories

sbom: ## list what module and command consist of, in target/sbom (CycloneDX)
	@packaging/sbom.sh

reproducible: ## build the module twice, in different places, and compare the bytes
	@packaging/reproducible.sh

addon: ## build the module by nginx's own configure and try it
	@packaging/addon.sh

# mimalloc, which is C, writes the time of its build into itself: the same sources shall make the same bytes.
module: export SOURCE_DATE_EPOCH ?= 1767225600
module: headers ## build target/release/libngx_http_simplestreams_module.so
	$(CARGO) build --release -p ngx-http-simplestreams

soak: ## live through hours of a site in minutes, verifying every byte: SECONDS=240 (as root)
	@packaging/deps.sh build run proof
	@$(MAKE) --no-print-directory module
	SOAK_SECONDS=$(or $(SECONDS),240) SIMPLESTREAMS_MODULE=$(MODULE) $(CARGO) test -q --test soak

# Without an allocator of its own, for valgrind knows glibc's pieces of memory.
valgrind: headers ## run nginx with the module under valgrind
	@packaging/deps.sh build run proof
	$(CARGO) build --release --target-dir $(TARGET_DIR)/valgrind -p ngx-http-simplestreams --no-default-features
	tests/proofs/memory.sh valgrind $(TARGET_DIR)/valgrind/release/$(notdir $(MODULE))

# AddressSanitizer is an unstable option of rustc, which RUSTC_BOOTSTRAP lets the stable one take. The
# C part of the module is instrumented as well.
ASAN_TARGET := x86_64-unknown-linux-gnu
asan: headers ## run nginx with the module instrumented by AddressSanitizer
	@packaging/deps.sh build run proof
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_PROFILE_RELEASE_LTO=off \
	    CFLAGS_x86_64_unknown_linux_gnu='-fsanitize=address -fno-omit-frame-pointer -g' \
	    CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
	    $(CARGO) build --release --target $(ASAN_TARGET) --target-dir $(TARGET_DIR)/asan \
	    -p ngx-http-simplestreams --no-default-features
	tests/proofs/memory.sh asan $(TARGET_DIR)/asan/$(ASAN_TARGET)/release/$(notdir $(MODULE))

fuzz: ## fuzz what reads other people's bytes, each target for SECONDS=60
	@tests/proofs/fuzz.sh $(or $(SECONDS),60)

nginx-tests: ## run nginx's own tests with and without the module: NGINX_TESTS=path of a checkout
	@test -n "$(NGINX_TESTS)" || { echo 'usage: make nginx-tests NGINX_TESTS=path' >&2; exit 2; }
	@packaging/deps.sh build run proof
	@$(MAKE) --no-print-directory module
	tests/proofs/nginx-tests.sh $(MODULE) $(NGINX_TESTS)

deb: ## build and test packages for Debian 12 and 13, in target/deb (as root)
	@packaging/deb.sh

image: ## build and test a container image and an LXD/Incus image, in target/image (as root)
	@packaging/deps.sh build run test package
	@packaging/image.sh
	@$(MAKE) --no-print-directory module
	SIMPLESTREAMS_MODULE=$(MODULE) SIMPLESTREAMS_IMAGES=$(TARGET_DIR)/image \
	    $(CARGO) test --test e2e packaged:: -- --ignored

pristine: ## try README's two commands in a clean Debian 12 (as root)
	@packaging/pristine.sh $(PORT)

bench: ## measure against the best rivals, in minutes; ONLY="serving change" for parts (as root)
	@packaging/deps.sh build test bench
	@$(MAKE) --no-print-directory module
	$(CARGO) build --release
	@python3 bench/run.py $(ONLY)

headers:
	@packaging/deps.sh build
	@packaging/nginx-headers.sh $(TARGET_DIR)

clean: ## remove what was built and the demonstration
	$(CARGO) clean
	rm -rf run
