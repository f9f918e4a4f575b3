# Each target does its own set-up; `make setup` alone is enough for the `evatok` command.
#
# The environment: the active virtual environment, else EVATOK_PYTHON, else a new `.venv` here.
# An installed torch is kept whatever its version and build; where there is none, 2.13.0 is taken.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:

# Two threads that spin while they wait slow each other down on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE

ifdef EVATOK_PYTHON
PYTHON := $(EVATOK_PYTHON)
else ifdef VIRTUAL_ENV
PYTHON := $(VIRTUAL_ENV)/bin/python
else
PYTHON := .venv/bin/python
endif

TEST_JOBS ?= 2
EXTRAS := app,arcade,dev,docs,llama
RUN := $(PYTHON) -m

# Of `make faults`: damaged files, and which ones.
N ?= 2000
SEED ?= 1
KILLS ?= 5

# Of `make test-wheel`: quick takes the dependencies of this environment, full installs them.
WHEEL ?= quick

.PHONY: setup demo test test-app test-wheel faults docs lint format clean

setup:
	@PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" bash .ci/setup

demo: setup
	@$(RUN) evatok demo

test: setup
	@OMP_NUM_THREADS=1 $(RUN) pytest -n $(TEST_JOBS) --dist loadfile

test-wheel: setup
	@PYTHON="$(PYTHON)" WHEEL="$(WHEEL)" bash .ci/wheel

# Debian: apt-get install chromium chromium-driver
test-app: setup
	@OMP_NUM_THREADS=1 $(RUN) pytest -m slow tests/evatok/app/test_browser.py

faults: setup
	@failed=0
	nice $(PYTHON) tests/faults/fuzz.py --n $(N) --seed $(SEED) --jobs $(TEST_JOBS) || failed=1
	nice $(PYTHON) tests/faults/kills.py --kills $(KILLS) --seed $(SEED) --good out/faults/good || failed=1
	nice $(PYTHON) tests/faults/launched.py --good out/faults/good || failed=1
	nice $(PYTHON) tests/faults/disk.py --seed $(SEED) --good out/faults/good || failed=1
	exit $$failed

docs: setup
	@$(PYTHON) docs/settings_reference.py
	$(PYTHON) docs/api_reference.py
	$(RUN) mkdocs build --strict

lint: setup
	@$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright --pythonpath "$(PYTHON)"
	$(dir $(PYTHON))lint-imports

format: setup
	@$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
