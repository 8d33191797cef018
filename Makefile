# `make run` shows postrio at work, `make test` runs everything. Both make their own virtual
# environment in .venv on first use; PYTHON=python3.12 chooses another interpreter for it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors are shown, warnings (root, cache directory) are not. It never asks.
PIP := PIP_NO_INPUT=1 $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
ONCE ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test docs clean

help:
	@echo 'make run          deliver the messages in examples/ to a little world on loopback'
	@echo 'make run ONCE=1   the same, ending by itself when all is settled'
	@echo 'make test         format, lint, types and all tests (PYTEST_ARGS="-k name" for some)'
	@echo 'make docs         write the reference of parameters and the HTML of the manual pages anew'
	@echo 'make clean        remove .venv, caches, and var/ with the queue of the demonstration'

# The interpreter of the environment stands for the environment. Debian splits ensurepip from
# Python, and the error it gives then is easily missed.
$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments: install the Debian package python3-venv' >&2; \
	    exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Stamps are written last, so that an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed | $(BIN)/python
	@$(PIP) install --editable '.[test]'
	@touch $@

run: $(VENV)/.installed
	@$(BIN)/python -m bench.demo $(if $(ONCE),--once)

test: $(VENV)/.installed-test
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pytest $(PYTEST_ARGS)

# The HTML is made of the manual pages by mandoc (Debian package mandoc).
docs: $(VENV)/.installed
	@$(BIN)/python -m worker.config.manual
	@$(BIN)/python -m worker.config.manual_html

clean:
	rm -rf $(VENV) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
