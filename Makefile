# Every target makes the virtual environment it needs, so any of them works on a fresh clone.  `make` alone lists them.
#   make PYTHON=python3.12 test      another Python
#   make demo ARGS='--out DIR'     arguments for the command behind a target

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
NAME ?=
BIN := $(VENV)/bin
# uv, where it is installed, unpacks torch and Ray in a fifth of pip's time.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip --disable-pip-version-check install) --quiet

.PHONY: help setup demo test test-fast test-long test-ray test-matching test-faults check bench clean

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

# Two stamps: the demo needs the package alone, everything else the tools too.  A changed pyproject.toml installs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cropreg needs Python 3.11 or newer, $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(BIN)/python
	@echo "installing cropreg and what it needs into $(VENV) (torch and Ray are large: minutes)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.tools: pyproject.toml | $(BIN)/python
	@echo "installing cropreg, what it needs and the tools into $(VENV) (torch and Ray are large: minutes)"
	$(INSTALL) --no-compile --editable '.[dev]' # of the 18,000 modules tests import a few
	@touch $(VENV)/.package $@

setup: $(VENV)/.tools ## Makes the virtual environment with everything a developer needs.

demo: $(VENV)/.package ## Shows the whole way on pictures that come with the package: minutes on 2 CPU cores.
	$(BIN)/cropreg demo $(ARGS)

# Work is stolen, not dealt out: what a module's tests share is then made in one process.
test: test-fast test-long test-ray ## Runs all tests but the slow ones.

test-fast: $(VENV)/.tools ## Runs the tests that take a minute or two together.
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not long and not ray and not slow and not browser" $(ARGS)

test-long: $(VENV)/.tools ## Runs the longer ones without Ray: whole matches, an object store, the command line.
	$(BIN)/pytest -q -n 2 --dist worksteal -m "long and not slow" $(ARGS)

# In one process: several local clusters on one machine get in each other's way.
test-ray: $(VENV)/.tools ## Runs the tests that start Ray.
	$(BIN)/pytest -q -m "(ray or browser) and not slow" $(ARGS)

test-matching: $(VENV)/.tools ## Runs the tests of the matcher, the slow ones too.
	$(BIN)/pytest -q -n 2 --dist worksteal -m "" tests/matching $(ARGS)

# In one process, for the same reason as test-ray.
test-faults: $(VENV)/.tools ## Runs the tests that kill workers, nodes and drivers.
	$(BIN)/pytest -q -m slow tests/test_*faults*.py $(ARGS)

check: $(VENV)/.tools ## Checks style, types and that imports point down.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_floors.py

bench: $(VENV)/.tools ## Runs one benchmark: make bench NAME=matching ARGS='--photos DIR'; without NAME it lists them.
	@if [ -n "$(NAME)" ]; then $(BIN)/python benchmarks/$(NAME).py $(ARGS); else \
	  for file in benchmarks/*.py; do printf '%-12s ' "$$(basename $$file .py)"; sed -n '1s/"""//gp' $$file; done; fi

clean: ## Removes what the other targets leave behind, except the virtual environment.
	rm -rf build dist cropreg-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf
