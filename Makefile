# Start with `make demo` and `make test`. Each installs what it needs into .venv, once.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# This pins build requirements too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start many processes, and each starts a tenth of a second faster with compiled modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow test-all check format bench docs clean

help:
	@echo "make demo       watch a day of changes pass through a real collector"
	@echo "make test       run the quick tests"
	@echo "make test-slow  run soak tests, longer searches, and tests against collectors, which are built first"
	@echo "make check      check lint, format and types"
	@echo "make bench      run the benchmarks; QUICK=1 for a rough run, BENCHMARKS=drain for only that one"
	@echo "make format     format the code"
	@echo "make docs       generate the parts of docs/ that come from the code"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The demo's collector has wheels for Linux and macOS only. Without it the receiver exports straight to the backend.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]' || \
		{ echo "!! rotel can't be installed here: the demo runs without a collector"; $(BIN)/pip install --quiet --editable .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# On a terminal the demo keeps listening after its sample day; otherwise it ends.
demo: $(VENV)/.demo
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/statsig-otel demo $(ARGS); else $(BIN)/statsig-otel demo --once $(ARGS); fi

# Three at once, on two cores too: a third of the quick tests' time is waiting.
test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n 3 --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	HYPOTHESIS_PROFILE=slow $(BIN)/pytest -m "slow or hypothesis" --timeout 1800 -n 2 --dist worksteal $(ARGS)

test-all: test test-slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "basedpyright --verifytypes: the public types as users see them"
	@out=$$(PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --verifytypes statsig_otel --ignoreexternal) || \
		{ echo "$$out"; exit 1; }

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each script prints a report and writes it to benchmarks/results. ARGS are passed to all of them. against_collector and
# memory build an OpenTelemetry Collector with Go, once. If that is not possible, their reports say so.
BENCHMARKS ?= http_servers against_collector core_cost durable_answers drain backlog_start latency memory startup growth \
	mapping_cost hot_spots
bench: $(VENV)/.dev
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) $(ARGS); echo; done

# Generates the tables of docs/configuration.md, and the schema.
docs: $(VENV)/.dev
	$(BIN)/python -m statsig_otel.plugin.cli.configuration_docs docs

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
