# Everything here works on a machine that has Python 3.11 or newer, pip and make; `make help` lists the targets.
# Settings: PYTHON=python3.11 (which interpreter makes .venv), JOBS=2 (test processes), SLURM_TESTS=3 (at a time), DEMO_ARGS="--out DIR".

PYTHON ?= python3
JOBS ?= 2
SLURM_TESTS ?= 3
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# One process per test file group, one thread each: OpenMP threads that fight for two cores make small tensors slower, not faster.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo demo-quick test test-slow test-slurm test-all check lint format install clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.core  ## the main job on synthetic studies, from DICOM to demo/report.html (about 8 minutes on 2 cores, 10 at most)
	$(BIN)/vetdino demo $(DEMO_ARGS)

demo-quick: $(VENV)/.core  ## the same, smaller: one seed, about 3 minutes
	$(BIN)/vetdino demo --quick $(DEMO_ARGS)

test: $(VENV)/.dev  ## the tests that take seconds
	$(PYTEST) -n $(JOBS)

test-slow: $(VENV)/.dev  ## only the tests marked slow
	$(PYTEST) -n $(JOBS) -m slow

test-slurm: $(VENV)/.dev  ## those on a real SLURM, which is brought up for them (as root; tells which packages are missing)
	$(BIN)/python tests/slurm/slurm_cluster.py run -- env $(PYTEST) tests/slurm -n $(SLURM_TESTS) -m slurm --durations 0 -r s

test-all: $(VENV)/.dev  ## every test but those on SLURM
	$(PYTEST) -n $(JOBS) -m "not slurm"

check: lint  ## lint, formatting, types, import directions and house rules
	$(BIN)/pyright
	$(PYTEST) tests/contract/test_import_directions.py tests/contract/test_house_rules.py

lint: $(VENV)/.dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## let ruff write the formatting and the safe corrections
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.dev  ## only make .venv

clean:  ## remove .venv, caches and build leftovers; demo folders and runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: set-up runs again only when the list of packages changes.
$(VENV)/.core: setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is `$(PYTHON) --version 2>/dev/null || echo not there`; VET-DINO needs Python 3.11 or newer. Run: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing VET-DINO and what it needs into $(VENV) (once; up to a few minutes) ..."
	@$(INSTALL) pip setuptools
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing the development tools into $(VENV) (once) ..."
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
