# What people and CI call. Everything that needs .venv or a system program goes through scripts/setup first, which is
# done in a moment when nothing is missing.
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
NODES ?= alpha,beta
export PYTHON

BIN := .venv/bin
PYTEST := $(BIN)/pytest
# Several at once, each with a stack of its own; who has ended helps the others.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist worksteal
# What the cells of `make matrix` write.
RESULTS := $(CURDIR)/.build/matrix.jsonl
# Where `make up` keeps its logs.
STATE := $(or $(HAULIER_STATE),$(HOME)/.local/state/haulier)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check static unit model integration acceptance recordings scenarios matrix bench
.PHONY: docs tpm-window up down logs migrate revision lock clean setup setup-tests

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## live-migrates a VM with disks and a vTPM between two nodes of this machine
	@$(BIN)/python -m scripts.demo $(if $(PICTURE),--picture $(PICTURE))

docs: setup ## writes the generated parts of README.md and docs/ anew
	@$(BIN)/python -m scripts.docs

tpm-window: setup ## the experiment of docs/tpm.md: what the copy of a TPM loses and the stream does not
	@$(BIN)/python -m scripts.tpm_window

# CI=1: a tool that is missing fails the tests that need it instead of skipping them.
test: setup-tests static ## all that CI runs: check and every test, with real QEMU, swtpm, PostgreSQL; many minutes
	@CI=1 $(PYTEST) $(SIDE_BY_SIDE)

check: static unit ## format, lint, types, import contracts, unit tests; a minute

static: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m scripts.docs --check

unit: setup ## tests without I/O
	@$(PYTEST) tests/unit

model: setup ## a migration under every disorder, on fake hosts: 10,000 runs, half an hour; RUNS=
	@HAULIER_MODEL_RUNS=$(or $(RUNS),10000) $(PYTEST) --numprocesses auto tests/model/test_model.py

integration: setup-tests ## tests on a real PostgreSQL, a real broker and the real migrations chain
	@$(PYTEST) tests/integration

acceptance: setup-tests ## tests with real workers and real QEMUs, and kill -9
	@$(PYTEST) $(SIDE_BY_SIDE) tests/acceptance

recordings: setup-tests ## records LVM's answers anew, in a Linux guest, for tests/recordings
	@HAULIER_RECORD=1 $(PYTEST) -q -p no:xdist tests/contract/test_storages_real.py -k "lvm and not fake"

scenarios: setup-tests ## the table of docs/scenarios.md on real parts: what each VM does when something fails
	@$(PYTEST) $(SIDE_BY_SIDE) tests/scenarios

# Three at once: a cell mostly waits. The page is written from what was right, whatever failed.
matrix: setup-tests ## the fault matrix: every fault at every point of a migration; needs root and half an hour
	@mkdir -p .build && : >$(RESULTS)
	@CI=1 HAULIER_MATRIX=whole HAULIER_MATRIX_RESULTS=$(RESULTS) $(PYTEST) -q -n 3 --dist worksteal tests/matrix; \
		played=$$?; $(BIN)/python -m scripts.reliability $(RESULTS) && $(BIN)/python -m scripts.docs && exit $$played

bench: setup-tests ## the figures of docs/performance.md
	@$(BIN)/python -m bench

up: setup ## starts the local stack; NODES=alpha,beta
	@$(BIN)/haulier up --nodes $(NODES)

down: setup ## stops the local stack; VMs stay
	@$(BIN)/haulier down

logs: ## follows the local stack's logs
	@tail -n 20 -F $(STATE)/logs/*.log

migrate: setup ## brings the database (HAULIER_DATABASE_URL, else the local stack's) to the newest revision
	@mkdir -p -m 700 $(STATE)
	@$(BIN)/python -c 'from haulier.settings import load_settings as s; from migrations.chain import upgrade as u; u(s().database)'

# Compared with a database of its own, made from the revisions so far: yours may be anywhere.
revision: setup ## M="what changes": writes a new revision from the difference between models/ and the revisions
	$(if $(M),,$(error say what changes: make revision M="add a column"))
	@rm -f .build/revision.db
	@$(BIN)/alembic -x url=sqlite:///.build/revision.db upgrade head
	@$(BIN)/alembic -x url=sqlite:///.build/revision.db revision --autogenerate -m "$(M)"

lock: ## writes requirements.lock anew, keeping versions that still fit; UV=--upgrade for the newest of all
	@$(PYTHON) -m venv --clear .build/lock
	@.build/lock/bin/pip --quiet --disable-pip-version-check install uv
	@.build/lock/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev \
		--custom-compile-command 'make lock' $(UV) --output-file requirements.lock pyproject.toml

clean: ## removes what was built, downloaded and installed in this folder
	rm -rf .venv .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@scripts/setup

setup-tests:
	@scripts/setup --tests
