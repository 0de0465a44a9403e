# make demo, make test: both work on a fresh clone on a bare Debian 12 with make and python3.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Which versions of Python's packages: locked (requirements), or the newest or oldest that pyproject.toml allows.
VERSIONS ?= locked
VENV ?= $(if $(filter locked,$(VERSIONS)),.venv,.venv-$(VERSIONS))
PYTHON ?= python3
BIN := $(VENV)/bin
# Tools by their module: a script's first line cannot name an interpreter in a folder with a space in its name.
RUN := "$(BIN)/python" -m
PREPARE := VENV="$(VENV)" PYTHON="$(PYTHON)" bash scripts/prepare
# Network namespaces and iptables need root; without it and without sudo the demo shows rules only, and tests are skipped.
AS_ROOT := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo test test-trace test-newest test-oldest check bench lint types setup lock lock-debian plugin clean

help: ## show what there is to make
	@sed -n 's|^\([a-z -]*\): .*## \(.*\)|  make \1	\2|p' Makefile | expand -t 32

demo: ## a small cluster in network namespaces: real rules, real traffic, nothing left behind
	@$(PREPARE) demo $(VERSIONS)
	@$(AS_ROOT) $(RUN) kproxy demo

test: setup $(if $(filter locked,$(VERSIONS)),lint types) ## everything: lint, types, layers and every test
	@mkdir -p .cache && $(AS_ROOT) scripts/debian-kernel >/dev/null || true # a test that starts it says what is missing
	@PYTHON="$(BIN)/python" scripts/kubectl >/dev/null || true # as above
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(if $(CI),CI=$(CI)) scripts/run-tests $(RUN) pytest -p no:cacheprovider

test-trace: setup ## traces against real connections: STATES random states (300)
	$(AS_ROOT) env KPROXY_TRACE_STATES=$(or $(STATES),300) $(RUN) pytest -q -p no:cacheprovider tests/trace/test_packets.py

test-newest test-oldest: test-%: ## every test, on the newest or the oldest versions that pyproject.toml allows
	$(MAKE) --no-print-directory test VERSIONS=$*

check: setup $(if $(filter locked,$(VERSIONS)),lint types) ## the quick loop: lint, types, and the tests that need no root
	$(RUN) pytest -q -m "not root and not slow"

bench: setup ## measure whole proxies, as BENCH='--modes nftables …' says; report in benchmarks/results
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(RUN) benchmarks $(BENCH)

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	"$(BIN)/lint-imports" --no-logo > "$(VENV)/imports.log" || { cat "$(VENV)/imports.log"; exit 1; }

types: setup
	$(RUN) mypy

setup:
	@$(PREPARE) tests $(VERSIONS)

plugin: setup ## kubectl kproxy as one file: dist/kubectl-kproxy
	"$(BIN)/python" scripts/build_plugin.py dist/kubectl-kproxy

lock: ## renew requirements: the newest versions that pyproject.toml allows, with the hash of every file
	PYTHON="$(PYTHON)" scripts/lock newest requirements

lock-debian: ## write down the versions of Debian's packages and kernel that are there now; then make test
	scripts/system-packages --record
	scripts/debian-kernel --record

clean: ## remove the virtual environments and what tools cached
	rm -rf .venv .venv-newest .venv-oldest .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
