# Set-up, checks, demo and benchmark. Every target does its own set-up; needed beforehand: make and Python 3.11 or newer.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
ROWS ?= 1000000
MESSAGES ?= 100000
TESTS ?=
SIDE_BY_SIDE ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup test test-cluster test-image lint docs services demo demo-telegram bench requirements clean

setup: .venv/.complete

.venv/.complete: requirements-dev.txt pyproject.toml $(wildcard setup.py producer/*/*.c producer/*/*/*.c producer/*/*.h)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q producer  # also where PYTHONDONTWRITEBYTECODE is set: a run starts in half the time
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml producer

docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

services: setup
	$(BIN)/python -m tests.services

# Three files at a time, each in a process with servers of its own: the tests of faults wait most of their time.
# Real servers on a busy machine: a test that failed (exit code 1) is run once more, alone. If it fails twice, it fails.
test: lint services
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(TESTS); code=$$?; [ $$code -eq 1 ] || exit $$code; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none $(TESTS)

# Not part of `test`, since they take minutes the first time. A Kubernetes control plane, built from its Go modules.
test-cluster: setup
	$(BIN)/python -m tests.cluster
	$(BIN)/python -m pytest tests/cluster

# The Dockerfile, built and run by podman, as root on Debian; its base is a stand-in of the same Python.
test-image: setup services
	$(BIN)/python -m tests.container
	$(BIN)/python -m pytest tests/container

demo: setup
	$(BIN)/producer demo --rows $(ROWS)

demo-telegram: setup
	$(BIN)/python -m tests.mtproto.demo --messages $(MESSAGES)

bench: setup services
	$(BIN)/python -m benchmarks

# The pinned versions, newly resolved; hashes for all platforms, and no registry named.
requirements: setup
	$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile --quiet --upgrade $(COMPILE) --extra mysql --extra duckdb --extra otel -o requirements.txt
	$(BIN)/python -m uv pip compile --quiet --upgrade $(COMPILE) --extra dev --extra bench -o requirements-dev.txt
	$(BIN)/python -m uv pip compile --quiet --upgrade $(PINNED) requirements-build.in -o requirements-build.txt

PINNED := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
COMPILE := $(PINNED) pyproject.toml

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find producer tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
	find producer -name '*.so' -delete
