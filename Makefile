# `make` lists what there is. Everything runs in .venv, which `make setup` makes and every target keeps current.

# The Python that makes the venv: 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
export VENV
# ONNX Runtime would report models to its makers.
export ORT_DISABLE_TELEMETRY = 1

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Test files that run at the same time; 0: one after another, in one process.
JOBS ?= 2
# How long storm and soak take.
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup run train lessons test unit clients fuzz kills lint format proto dashboards pictures bench attacks storm frames soak fairness \
	lock audit sbom docker certificate clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12 chooses the Python that .venv is made with."
	@echo "  On Linux without a GPU, a smaller PyTorch:"
	@echo "    make setup PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"

setup: $(INSTALLED) ## Make .venv and install everything into it

# PyTorch goes first and alone: its version is fixed, and what comes after finds it there. The stamp is written
# last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Recurra needs Python 3.11 or newer. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch into $(VENV) (a few minutes the first time) ..."
	@$(PIP) torch==2.13.0
	@echo "Installing Recurra and the tools ..."
	@$(PIP) --editable '.[server,training,dev]'
	@touch $@

run: $(INSTALLED) ## Train a model if there is none, serve it, stream held-out recordings through it; Ctrl-C ends it
	@exec $(BIN)/python scripts/run.py

train: $(INSTALLED) ## Train the model of the tour
	$(BIN)/recurra train watch

lessons: $(INSTALLED) ## Train all there is to learn, and write the figures of docs/learning.md (twenty minutes)
	$(BIN)/python -m recurra_training.lessons --document docs/learning.md

test: lint unit ## All checks and all tests

# A file's tests share servers, so each file goes to one process.
unit: $(INSTALLED) ## All tests, without the checks; JOBS=0 for one file after another
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile

clients: $(INSTALLED) ## Tests with clients that are heavy to install: KServe's, perf_analyzer
	$(BIN)/pytest -m heavy

fuzz: $(INSTALLED) ## Throw hostile requests, YAML and ONNX at the edges, FUZZ=2000 of each kind, and count what becomes of them
	FUZZ=$${FUZZ:-2000} $(BIN)/pytest --hypothesis-show-statistics -rP -k "any or hostile or damaged or bomb or huge" \
		tests/openinference/test_fuzz.py tests/server/rpc/test_fuzz.py tests/server/rpc/test_foreign.py \
		tests/server/runtimes/test_description.py tests/server/runtimes/test_hostile.py

kills: $(INSTALLED) ## Kill servers under 200 sessions, and roll them; KILLS='--sessions 50' chooses (five minutes)
	$(BIN)/python -m tests.cluster $(KILLS)

# Nothing here writes into the tree.
lint: $(INSTALLED) ## Check style, types, imports, the protos and their stubs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	scripts/check_breaking.sh
	scripts/check_stubs.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(INSTALLED) ## Mend style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(INSTALLED) ## Generate the stubs after a change of a proto
	scripts/generate_stubs.sh

dashboards: $(INSTALLED) ## Generate the Grafana dashboards after a change of their code
	$(BIN)/python -m deploy.grafana.build

pictures: $(INSTALLED) ## Play some minutes of load, and draw the dashboards of docs/dashboards.md from a real Prometheus
	$(BIN)/python -m tests.deploy.pictures docs/images/dashboards

bench: $(INSTALLED) ## Measure beside the peers, into results/; BENCH='--only limit,bulk --quick' chooses
	$(BIN)/python -m benchmarks $(BENCH)

attacks: $(INSTALLED) ## Attack each edge of SECURITY.md, and print what came back (a few minutes)
	$(BIN)/pytest -m attack --attack-table -q --numprocesses $(JOBS) --dist loadfile

storm: $(INSTALLED) ## Throw made-up messages, tokens and HTTP, damaged bytes, frames and noise at servers for MINUTES=60
	$(BIN)/python -m tests.support.fuzz --minutes $(MINUTES)

frames: $(INSTALLED) ## Play the cases of h2spec, a suite of HTTP/2 frames, at a server: H2SPEC=<its program>
	$(BIN)/python -m tests.support.h2spec $(H2SPEC)

soak: $(INSTALLED) ## Load a server with callers who come, go and vanish for MINUTES=60
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

fairness: $(INSTALLED) ## Measure what a quiet caller feels of one that floods
	$(BIN)/python -m benchmarks --only fairness $(BENCH)

# The Python packages of the image, and what looks into their list, in an environment of its own.
SUPPLY := $(VENV)-supply/bin
$(SUPPLY): Makefile
	$(PYTHON) -m venv $(VENV)-supply
	$@/pip install --quiet --disable-pip-version-check pip-tools==7.6.2 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

lock: $(SUPPLY) ## Choose the Python packages of the image anew, with hashes, into deploy/lock
	$(SUPPLY)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --no-annotate --extra server -o deploy/lock/server.txt pyproject.toml
	echo 'hatchling>=1.27' | $(SUPPLY)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate -o deploy/lock/build.txt -

audit: $(SUPPLY) ## Look for known holes in the packages of deploy/lock/server.txt
	$(SUPPLY)/pip-audit --disable-pip --require-hashes -r deploy/lock/server.txt

sbom: $(SUPPLY) ## List the packages of deploy/lock/server.txt, as CycloneDX, into dist/sbom.json
	@mkdir -p dist
	$(SUPPLY)/cyclonedx-py requirements deploy/lock/server.txt --output-reproducible -o dist/sbom.json

docker: ## Build the server's image
	docker build --file deploy/docker/Dockerfile --tag recurra .

CERTIFICATES ?= certificates
certificate: ## Make a certificate for localhost, for Envoy in docker-compose.yml
	@mkdir -p $(CERTIFICATES)
	@openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout $(CERTIFICATES)/tls.key -out $(CERTIFICATES)/tls.crt 2>/dev/null
	@chmod 644 $(CERTIFICATES)/tls.key  # the container's user is another

clean: ## Remove .venv and caches; models, runs and data stay
	rm -rf .venv .venv-supply build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
