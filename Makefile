# `make` alone lists the targets. Everything runs in .venv, which the first target that needs it makes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Tried by running it: a version switcher's shim exists also where the version does not.
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c '$(OLD_ENOUGH)' 2>/dev/null && { echo $$python; break; }; done)

# Options for pytest and for the benchmark, as in `make test ARGS="tests/fanout -x"`.
ARGS ?=
# All tests run in several processes, a file in one of them; some tests in one, with nothing in between when they fail.
PARALLEL := $(if $(ARGS),,-n auto --maxprocesses 4 --dist loadfile)
# COVERAGE=1 has `make test` measure; `make check` sets it.
COVERAGE ?=

.PHONY: help run test check format lint types imports coverage mutants kafka bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(STAMP) ## start the gateway with a Kafka broker of its own, demo channels and a token (Ctrl-C ends it)
	@exec $(VENV)/bin/gateway dev

test: $(STAMP) ## run all tests (ARGS="tests/fanout -x" for some of them)
	$(if $(COVERAGE),@$(PY) -m coverage erase)
	$(PY) -m $(if $(COVERAGE),coverage run -m )pytest $(PARALLEL) $(ARGS)

check: COVERAGE := 1
check: lint types imports test coverage ## all that must pass: format, lint, types, imports, tests, coverage

format: $(STAMP) ## bring the sources into their format and mend what the linter can
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

lint: $(STAMP) ## check format and lint rules
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(STAMP) ## check types (mypy --strict)
	$(PY) -m mypy

imports: $(STAMP) ## check that imports between packages go down only
	$(VENV)/bin/lint-imports

# Reads what `make test COVERAGE=1` measured.
coverage: $(STAMP) ## check the measured coverage: 95 % of lines and of branches, 100 % of sans-I/O modules
	$(PY) -m coverage combine --quiet --keep
	$(PY) -m coverage report
	$(PY) tests/sansio_coverage.py

mutants: $(STAMP) ## change the hub and the cursor in every small way and list what no test notices (takes minutes)
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

kafka: $(STAMP) ## fetch Apache Kafka from Maven Central and run one node on free ports (Ctrl-C ends it)
	@cd tests && exec ../$(PY) -m integration.apache_kafka

bench: $(VENV)/.bench ## measure the gateway and its peers (ARGS="broadcast --quick"; ARGS=--help lists all scenarios)
	@cd tests && exec ../$(PY) -m bench $(ARGS)

clean: ## remove what the other targets made, the environment and Apache Kafka included
	rm -rf $(VENV) .kafka .bench build dist mutants *.egg-info .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.bench: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[bench]'
	@touch $@

$(STAMP): pyproject.toml deploy/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, as python3.11 or python3 on the PATH." >&2; exit 1; }
	@$(PYTHON) -c '$(OLD_ENOUGH)' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older." >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON) …"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make environments (Debian: apt-get install python3-venv)." >&2; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $@
