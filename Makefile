# make demo, make test: both work on a fresh clone on a bare Debian 12 with make and python3.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Network namespaces and iptables need root; without it and without sudo the demo shows rules only, and tests are skipped.
AS_ROOT := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo test check bench lint types setup system clean

help: ## show what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: $(READY) ## a small cluster in network namespaces: real rules, real traffic, nothing left behind
	@$(AS_ROOT) $(BIN)/kproxy demo

test: $(READY) lint types ## everything: lint, types, layers and every test
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(if $(CI),CI=$(CI)) scripts/run-tests $(BIN)/pytest -p no:cacheprovider

check: $(READY) lint types ## the quick loop: lint, types, and the tests that need no root
	$(BIN)/pytest -q -m "not root and not slow"

bench: $(READY) ## measure whole proxies, as BENCH='--modes nftables …' says; report in benchmarks/results
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m benchmarks $(BENCH)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

types: $(READY)
	$(BIN)/mypy

setup: $(READY)

system:
	@scripts/system-packages

$(READY): pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit("kproxy needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean: ## remove the virtual environment and what tools cached
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
