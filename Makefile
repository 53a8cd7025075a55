# Every target makes what it needs: on a fresh clone `make test` or `make quickstart` is enough.
#
#   make test PYTHON=python3.13              another interpreter
#   make test PYTEST_ARGS="-m slow -k md"    other tests
#   make quickstart ARGS="training.steps=50" overrides of the configuration

PYTHON ?= python3
VENV ?= .venv
# What `make test` and `make lint` install; test,orb also runs the tests of Orb teachers (torch).
EXTRAS ?= test
ARGS ?=
PYTEST_ARGS ?=
# One worker per core, at most four: each holds its own JAX with its own compiled code.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()))")

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-smoke test lint format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed  ## distil a small student from the demonstration teacher and test it
	$(BIN)/python experiments/quickstart.py --config experiments/configs/quickstart.yaml $(ARGS)

quickstart-smoke: $(VENV)/.installed  ## the same in its shortest form, to see that it runs
	$(BIN)/python experiments/quickstart.py --config experiments/configs/quickstart.yaml --smoke $(ARGS)

test: $(VENV)/.installed-test  ## run the fast tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-test  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## mend style where that can be done by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment, caches and build products (never runs/)
	rm -rf $(VENV) build dist site htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path "./.git/*" -prune -exec rm -rf {} +

# The stamps are made anew when pyproject.toml or constraints.txt changes.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing distill into $(VENV) (a few minutes the first time)"
	$(PIP) --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing distill and its test tools into $(VENV) (a few minutes the first time)"
	$(PIP) --editable ".[$(EXTRAS)]" --constraint constraints.txt
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[docs]" --constraint constraints.txt
	@touch $@
