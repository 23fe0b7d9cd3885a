# The two commands of a newcomer are `make demo` and `make test`. Each sets up what it needs in .venv, once.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Build requirements are pinned too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start many processes, and each begins a tenth of a second earlier where the modules are compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow test-all check format bench docs clean

help:
	@echo "make demo       watch a day of changes arrive behind a real collector"
	@echo "make test       the quick tests"
	@echo "make test-slow  soaks, and collectors that are built first"
	@echo "make check      lint, format and types"
	@echo "make bench      the benchmarks; QUICK=1 for a first look, BENCHMARKS=drain for that one"
	@echo "make format     format the code"
	@echo "make docs       the parts of docs/ that are made from the code"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The demo's collector has wheels for Linux and macOS only; without it the demo goes straight to its sink.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]' || \
		{ echo "!! rotel can't be had here: the demo goes without a collector"; $(BIN)/pip install --quiet --editable .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# On a terminal the demo keeps listening after its sample day; elsewhere it ends.
demo: $(VENV)/.demo
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/statsig-otel demo $(ARGS); else $(BIN)/statsig-otel demo --once $(ARGS); fi

test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n 2 --dist loadgroup $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow --timeout 1800 -n 2 --dist loadgroup $(ARGS)

test-all: test test-slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "basedpyright --verifytypes: what the types are for those who import them"
	@out=$$(PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --verifytypes statsig_otel --ignoreexternal) || \
		{ echo "$$out"; exit 1; }

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each prints a report and keeps it in benchmarks/results. ARGS are for all that run. against_collector and memory build an
# OpenTelemetry Collector first, with Go, once; where that can't be had their reports say so.
BENCHMARKS ?= http_servers against_collector core_cost durable_answers drain backlog_start latency memory startup growth \
	mapping_cost hot_spots
bench: $(VENV)/.dev
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) $(ARGS); echo; done

# The parts of docs/configuration.md that are made from the code, and the schema.
docs: $(VENV)/.dev
	$(BIN)/python -m statsig_otel.plugin.cli.configuration_docs docs

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
