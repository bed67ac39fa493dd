# One environment, .venv, made as tested: constraints.txt pins every package.
#   make quickstart   install, train on three levels of theory, evaluate, run molecular dynamics
#   make test         the test suite        make check   format, lint, types
#   make docs         the documentation, in site/
#   make clean        removes what the targets above made, but not your runs

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS ?=
# one test process per core; a file's tests stay together, since they share what is slow to make
PYTEST_FLAGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help install quickstart test test-slow check format docs clean

help:
	@sed -n 's/^# \{0,3\}//; 2,5p' Makefile

install: $(STAMP)

# torch goes first and alone: any later resolution then finds it satisfied and cannot choose another build
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mfm needs Python 3.11 or newer: none found; set PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mfm needs Python 3.11 or newer, got $$("$(PYTHON)" --version); set PYTHON=/path/to/python"; exit 1; }
	@echo "[1/3] environment in $(VENV)"
	@test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	@echo "[2/3] $(TORCH)"
	@"$(BIN)/python" -m pip install $(PIP_FLAGS) --progress-bar on -c constraints.txt "$(TORCH)"
	@echo "[3/3] mfm and everything it needs"
	@"$(BIN)/python" -m pip install $(PIP_FLAGS) --progress-bar on -c constraints.txt -e '.[labels,tune,dev]'
	@touch "$(STAMP)"

quickstart: $(STAMP)
	@"$(BIN)/python" experiments/quickstart/run.py

test: $(STAMP)
	@"$(BIN)/python" -m pytest $(PYTEST_FLAGS)

test-slow: $(STAMP)
	@"$(BIN)/python" -m pytest -m slow

check: $(STAMP)
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/ruff" check .
	@"$(BIN)/mypy"

format: $(STAMP)
	@"$(BIN)/ruff" format .
	@"$(BIN)/ruff" check --fix .

docs: $(STAMP)
	@"$(BIN)/mkdocs" build --strict --quiet
	@echo "documentation: site/index.html"

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find mfm tests experiments data_scripts -name __pycache__ -type d -prune -exec rm -rf {} +
