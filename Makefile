# make setup | test | fuzz | check | demo: each works alone on a fresh clone, with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test fuzz check format docs demo clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "expected Python 3.11 or newer; found $$($(PYTHON) --version). Type: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# a process per core, one thread each: on small matrices two threads wait for each other more than they compute
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# the properties of the suite with fresh seeds, for ten minutes; prints the seed that fails
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --minutes 10

# test is a prerequisite, so `make test check` runs the tests once
check: setup test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the reference of the command line, then the site in site/: no network, and a broken link is an error
docs: setup
	$(BIN)/python tests/test_docs.py > docs/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup
	$(BIN)/rankscope demo

clean:
	rm -rf $(VENV) rankscope-demo build dist site .pytest_cache .mypy_cache .ruff_cache
