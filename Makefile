# Two commands: `make demo` runs the whole chain on the embedded policy, `make test` every test. Both make .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test coverage lint notebooks gallery clean help

# The first Python from 3.11 to 3.13 that answers; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# Without a GPU the CPU build of torch saves gigabytes; it has an index of its own, unless pip was told of wheels here.
TORCH := torch==2.13.0
TORCH_INDEX := $(shell command -v nvidia-smi >/dev/null || [ -n "$$PIP_FIND_LINKS" ] \
  || echo --extra-index-url https://download.pytorch.org/whl/cpu)
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# A process a core, four at most for their memory, one thread each. A file stays in one process, for what its tests share;
# tests/conftest.py puts the long ones first. ARGS="-n 0" runs them one after another.
TESTS := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo [FORCE=1]   the whole chain on the embedded policy, in about a minute after installation"
	@echo "make test             every test, the notebooks included"
	@echo "make coverage         the same, with the lines that no test reaches"
	@echo "make lint             ruff"
	@echo "make notebooks        build notebooks/*.ipynb from notebooks/src/*.py"
	@echo "make gallery          run the notebooks on the tiny policy into notebooks/gallery/*.html"

demo: .venv/.installed
	$(BIN)/grpo-kit demo $(if $(FORCE),--force)

test: .venv/.installed-test
	$(TESTS) $(ARGS)

# Counting lines slows every test down; it is done when it is asked for.
coverage: .venv/.installed-test
	$(TESTS) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: .venv/.installed-test
	$(BIN)/python notebooks/build.py

gallery: .venv/.installed-test
	$(BIN)/python notebooks/gallery.py

# A torch that is there already (Colab, Kaggle) is used as it is; else the pinned one goes in before anything asks for it.
.venv/.installed: requirements.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11, 3.12 or 3.13 was found; install one, or set PYTHON=/path/to/python." >&2; exit 2; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	  echo "using the torch of $(PYTHON)"; $(PYTHON) -m venv --system-site-packages .venv; \
	else $(PYTHON) -m venv .venv; fi
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(BIN)/python -m pip install -q $(TORCH_INDEX) $(TORCH); }
	@echo "installing grpo-kit and what it needs"
	@$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "installing the test extras"
	@$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

clean:
	rm -rf .venv runs submission/submission.zip notebooks/gallery
