# Entry points of the repository. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Where it is set, each of some thousand Python processes compiles Ansible and the collection anew.
unexport PYTHONDONTWRITEBYTECODE

# How many nodes the lab of `make demo` has (empty: as many as there are, or 2), and the model that it swaps to.
NODES ?=
SECOND_MODEL ?= tiny-nemotronh
# One scenario of molecule/, or every one when empty.
SCENARIO ?=
# Passed on to pytest, e.g. make unit ARGS='-k screen'.
ARGS ?=

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Create .venv from the lock of this Python (only when it is missing, unfinished or outdated)
	@.ci/venv

.PHONY: lock
lock: ## Pin requirements.in anew into requirements.lock and requirements-3.14.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --upgrade requirements.in --output-file requirements.lock
	cp requirements.lock requirements-3.14.lock  # whose pins uv keeps where it can
	uv pip compile --quiet --universal --python-version 3.14 --generate-hashes --no-emit-index-url --no-header \
	    --overrides requirements-3.14.in requirements.in --output-file requirements-3.14.lock

.PHONY: lock-images
lock-images: venv ## Pin the wheels of the engine images anew into locks/ (needs uv)
	@$(PY) scripts/lock_images.py $(ARGS)

.PHONY: check-arm64
check-arm64: venv ## Import the locked wheels on an emulated arm64 Python, as image_check does (6 GiB, 10 minutes)
	@$(PY) scripts/check_arm64.py $(ARGS)

.PHONY: models-page
models-page: venv ## Write the tables of models in README.md and docs/models.md anew
	@$(PY) scripts/models_page.py

.PHONY: demo
demo: venv ## Lab of two nodes (NODES=4: of four) -> served model -> swap -> a completion and a status screen
	@$(PY) -m lab.demo $(if $(NODES),--nodes $(NODES)) --second-model $(SECOND_MODEL)

.PHONY: lab-down
lab-down: venv ## Stop the lab and remove its nodes and networks
	@$(PY) -m lab down

# The tests run in parts. `.ci/part` keeps the output and the result of each in .ansible/reports, tests/lint/total.py
# shows and counts them: the last line is always `N passed, N failed`. Long parts come first.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
LINT := repository ansible-lint mypy duplicates yamllint ruff-check ruff-format changelog
FAST := unit $(LINT)
# What is left out of `make test-fast`, to keep the inner loop short.
SLOW := unit-slow sanity
SCENARIOS := $(patsubst molecule/%/molecule.yml,%,$(sort $(wildcard molecule/*/molecule.yml)))
MOLECULE := $(addprefix molecule-,$(SCENARIOS))

# What runs beside each other, the long ones first; docs/decisions/tests.md has the table. The end-to-end tests, which start
# real engines, begin at once, and beside them what waits most: for nodes without power, timers and shaped links. Then what
# needs the processor. A node of the lab sees the memory and the disk of its host: the scenarios that measure them come after
# the engines, which take and free gigabytes.
WAITING := $(filter $(MOLECULE),$(addprefix molecule-,fabric edge engine init rollback watch))
MEASURING := $(filter $(MOLECULE),$(addprefix molecule-,image monitor weights host doctor))
BESIDE := $(WAITING) unit-slow unit kube sanity $(LINT) $(filter-out $(WAITING) $(MEASURING),$(MOLECULE))

# The logs are read as text, while they are written.
PART := @NO_COLOR=1 PYTHONUNBUFFERED=1 .ci/part
PYTEST := $(PY) -m pytest --color=no --junitxml
# $(call run,JOBS,PARTS): one that fails stops no other.
run = $(MAKE) -k -j$(1) $(addprefix part-,$(2)) || true
total = $(PY) -m tests.lint.total $(1)

.PHONY: test-fast
test-fast: venv ## Lint, types and the quick unit tests (not sanity, not the unit tests that run playbooks)
	@rm -rf .ansible/reports
	@$(call run,$(JOBS),$(FAST))
	@$(call total,$(FAST))

.PHONY: test
test: venv ## Everything: test-fast, sanity, the slow unit tests, molecule, Kubernetes where a server is at hand, and the end-to-end tests
	@rm -rf .ansible/reports
	@$(call run,$(JOBS),e2e weights-kills $(BESIDE))
	@$(call run,$(JOBS),$(MEASURING))
	@$(call total,$(FAST) $(SLOW) $(MOLECULE) kube weights-kills e2e)

.PHONY: soak
soak: venv ## The long end-to-end tests: every fault, every repetition (hours)
	@$(PY) -m pytest tests/e2e -m soak -v $(ARGS)

.PHONY: lint
lint: venv ## The linters and the type checker, without ansible-test sanity and unit tests
	@$(call run,$(JOBS),$(LINT))
	@$(call total,$(LINT))

.PHONY: format
format: venv ## Let ruff put the Python code in order
	@ruff check --fix --quiet . ; ruff format .

.PHONY: sanity
sanity: venv ## ansible-test sanity on a copy of the collection
	@SHOW=1 $(call run,1,sanity)
	@$(call total,sanity)

.PHONY: duplicates
duplicates: venv ## Python code that stands twice (six lines and more)
	@$(PY) -m pylint plugins roles lab

.PHONY: unit
unit: venv ## Unit tests and the repository's own checks
	@$(PY) -m pytest tests/unit tests/lint -n 2 $(ARGS)

.PHONY: molecule
molecule: venv ## Molecule scenarios: all of them, or SCENARIO=host
	$(if $(filter-out $(SCENARIOS),$(SCENARIO)),$(error There is no molecule scenario $(SCENARIO). Known: $(SCENARIOS)))
	@SHOW=1 $(call run,1,$(addprefix molecule-,$(or $(SCENARIO),$(SCENARIOS))))
	@$(call total,$(addprefix molecule-,$(or $(SCENARIO),$(SCENARIOS))))

.PHONY: test-kube
test-kube: venv ## The role dynamo against a real Kubernetes API server (builds one first where there is none: 20 minutes)
	@test -n "$${KUBEBUILDER_ASSETS:-}" -o -e ~/.cache/gb10/kube/.complete || nice lab/kube/build ~/.cache/gb10/kube
	@GB10_KUBE=require $(PY) -m pytest tests/kube -v $(ARGS)

.PHONY: test-versions
test-versions: venv ## The control node's part on each ansible-core and Python that is supported and at hand
	@$(PY) scripts/ansible_versions.py $(ARGS)

.PHONY: e2e
e2e: venv ## End-to-end tests on the lab's nodes
	@$(PY) -m pytest tests/e2e -m 'not soak' -v $(ARGS)

# --- The parts ---
part-unit:
	$(PART) unit $(PYTEST)=.ansible/reports/unit.xml tests/unit -m 'not slow' -n 2 -o faulthandler_timeout=90
part-unit-slow:
	$(PART) unit-slow $(PYTEST)=.ansible/reports/unit-slow.xml tests/unit -m slow -n 2 -o faulthandler_timeout=90
part-repository:
	$(PART) repository $(PYTEST)=.ansible/reports/repository.xml tests/lint
part-sanity:
	$(PART) sanity $(PY) -m tests.lint.sanity
part-ansible-lint:
	$(PART) ansible-lint $(PY) -m ansiblelint --offline --nocolor
part-mypy:
	$(PART) mypy $(PY) -m mypy plugins lab scripts benchmarks roles tests
part-duplicates:
	$(PART) duplicates $(PY) -m pylint plugins roles lab
part-yamllint:
	$(PART) yamllint $(PY) -m yamllint --strict .
part-ruff-check:
	$(PART) ruff-check ruff check .
part-ruff-format:
	$(PART) ruff-format ruff format --check --diff .
part-changelog:
	$(PART) changelog antsibull-changelog lint
part-molecule-%:
	$(PART) molecule-$* $(PY) -m molecule test -s $*
# Where no API server, or no frontend of Dynamo, is at hand its tests are skipped; test_which_… prints which it was.
part-kube:
	$(PART) kube $(PYTEST)=.ansible/reports/kube.xml tests/kube -v -rP
KILLS := tests/e2e/test_40_weights_kills.py
part-e2e:
	$(PART) e2e $(PYTEST)=.ansible/reports/e2e.xml tests/e2e --ignore=$(KILLS) -m 'not soak' -v
# On a lab of its own.
part-weights-kills:
	$(PART) weights-kills $(PYTEST)=.ansible/reports/weights-kills.xml $(KILLS) -m 'not soak' -v

.PHONY: build
build: venv ## Build the collection's tarball
	@ansible-galaxy collection build --force

.PHONY: bench-%
bench-%: venv ## Run benchmarks/<name>.py, e.g. make bench-memory
	@$(PY) benchmarks/$*.py $(ARGS)
