# Two commands set everything up on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# The index in which torch, and nothing else, is looked up: its CPU builds carry none of CUDA's
# gigabytes. `make serve TORCH_INDEX=` takes PyPI's build, on Linux the one for NVIDIA cards.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip
INSTALL = $(PIP) install --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: serve install test slow smoke test-all check lint types lock clean

serve: install  ## the embedding server on http://127.0.0.1:8000
	$(BIN)/embedder serve

install: $(VENV)/.installed  ## the command line and the server, into .venv

test: $(VENV)/.dev  ## the tests; long ones are left out, see `slow`
	$(BIN)/python -m pytest

slow: $(VENV)/.extras  ## the long tests, and those that take an extra that `test` does without
	$(BIN)/python -m pytest -m "slow or extras"

smoke: $(VENV)/.dev  ## tags, a server's embedding, and what a new Python or library breaks first
	$(BIN)/python -m pytest @tests/smoke.txt

test-all:  ## `smoke` on each Python that pyenv, uv or the PATH has, in .venv-3.11, .venv-3.12, ...
	@$(PYTHON) tests/pythons.py | while read -r version python; do \
	  VIRTUAL_ENV=$(CURDIR)/.venv-$$version \
	    $(MAKE) smoke PYTHON="$$python" VENV=.venv-$$version </dev/null || exit 1; \
	done

check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

lock: $(VENV)/.dev  ## constraints.txt anew: the newest release of everything but torch
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
	  --no-annotate --output-file constraints.txt pyproject.toml

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once: 1.5 GB, two to five minutes."
ifneq ($(TORCH_INDEX),)
	@PIP_RETRIES=1 $(INSTALL) --no-deps --index-url $(TORCH_INDEX) torch || \
	  echo "$(TORCH_INDEX) gave no torch: PyPI's comes instead, on Linux with CUDA's gigabytes."
endif
	$(INSTALL) --editable '.[serve,bulk]'
	@touch $@
	@echo "Installed. Type 'source $(BIN)/activate' once a shell, then 'embedder --help';"
	@echo "or, without that, '$(BIN)/embedder --help'."

$(VENV)/.dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.extras: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,all]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.* .pytest_cache .mypy_cache .ruff_cache
