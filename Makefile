# Entry points of the repository. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

# How many nodes the lab of `make demo` has, and the model that it swaps to.
NODES ?= 4
SECOND_MODEL ?= tiny-nemotronh
# One scenario of molecule/, or every one when empty.
SCENARIO ?=
# Passed on to pytest, e.g. make unit ARGS='-k screen'.
ARGS ?=

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Create .venv from requirements.lock (only when it is missing, unfinished or outdated)
	@.ci/venv

.PHONY: lock
lock: ## Pin requirements.in anew into requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --upgrade requirements.in --output-file requirements.lock

.PHONY: demo
demo: venv ## Lab of four nodes -> served model -> swap -> a completion and a status screen
	@$(PY) -m lab.demo --nodes $(NODES) --second-model $(SECOND_MODEL)

.PHONY: lab-down
lab-down: venv ## Stop the lab and remove its nodes and networks
	@$(PY) -m lab down

.PHONY: test-fast
test-fast: venv ## Lint, sanity, types and unit tests (under five minutes; the inner loop)
	@$(PY) -m tests.lint.lanes fast

.PHONY: test
test: venv ## Everything: test-fast, molecule and the end-to-end tests
	@$(PY) -m tests.lint.lanes all

.PHONY: soak
soak: venv ## The long end-to-end tests: every fault, every repetition (hours)
	@$(PY) -m pytest tests/e2e -m soak -v $(ARGS)

.PHONY: lint
lint: venv ## The linters and the type checker, without ansible-test sanity and unit tests
	@$(PY) -m tests.lint.lanes lint

.PHONY: format
format: venv ## Let ruff put the Python code in order
	@ruff check --fix --quiet . ; ruff format .

.PHONY: sanity
sanity: venv ## ansible-test sanity on a copy of the collection
	@$(PY) -m tests.lint.lanes sanity

.PHONY: unit
unit: venv ## Unit tests and the repository's own checks
	@$(PY) -m pytest tests/unit tests/lint -n 2 $(ARGS)

.PHONY: molecule
molecule: venv ## Molecule scenarios: all of them, or SCENARIO=host
	@$(PY) -m tests.lint.lanes molecule $(SCENARIO)

.PHONY: e2e
e2e: venv ## End-to-end tests on the lab's nodes
	@$(PY) -m pytest tests/e2e -m 'not soak' -v $(ARGS)

.PHONY: build
build: venv ## Build the collection's tarball
	@ansible-galaxy collection build --force

.PHONY: bench-%
bench-%: venv ## Run benchmarks/<name>.py, e.g. make bench-memory
	@$(PY) benchmarks/$*.py $(ARGS)
