# make demo: install, then tokenize the images that come with the package.
# make test: install what the tests need, then lint and all tests.
# make docs: build the documentation as a site, in build/site; a broken link or an undocumented public name fails it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo test test-fast lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/gsqtok demo -o demo

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing gsqtok and what it needs (PyTorch is large; the first time takes minutes)"
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing gsqtok and what its tests need (PyTorch is large; the first time takes minutes)"
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	@echo "installing gsqtok and what its documentation needs (PyTorch is large; the first time takes minutes)"
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .hypothesis .mypy_cache .import_linter_cache
