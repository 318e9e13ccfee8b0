# `make demo` runs the whole chain on the embedded policy, `make test` every test. Both install into .venv first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo demo-environments test test-fast coverage lint notebooks gallery pictures wheel clean help

# The first Python from 3.11 to 3.13 that works; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# Without a GPU the CPU build of torch saves gigabytes. It has an index of its own, unless pip has a folder of wheels.
TORCH := torch==2.13.0
TORCH_INDEX := $(shell command -v nvidia-smi >/dev/null || [ -n "$$PIP_FIND_LINKS" ] \
  || echo --extra-index-url https://download.pytorch.org/whl/cpu)
BIN := .venv/bin
# Pages of the executed notebooks, to serve as they are: from the runs of the tests, or with all steps by `make gallery`.
GALLERY := notebooks/gallery
export GRPO_KIT_GALLERY ?= $(CURDIR)/$(GALLERY)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# Tests start hundreds of processes, which read compiled files much faster than they compile them.
unexport PYTHONDONTWRITEBYTECODE
# One process more than there are cores, because some tests wait for a browser, a lock or another process; at most four because
# of their memory, one thread each. The tests of a file share fixtures, so a file stays in one process; tests/conftest.py puts
# the long files first. ARGS="-n 0" runs all tests in one process.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((cores < 3 ? cores + 1 : 4)))
TESTS := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo [FORCE=1]   the whole chain on the embedded policy, in about a minute after installation"
	@echo "make demo-environments  four environments at once, then one alone, in about three minutes"
	@echo "make test             every test, the notebooks included"
	@echo "make test-fast        the tests that take no more than a few seconds, in about two minutes"
	@echo "make coverage         the same, with the lines that no test reaches"
	@echo "make lint             ruff"
	@echo "make notebooks        build notebooks/*.ipynb from notebooks/src/*.py"
	@echo "make wheel            build dist/grpo_kit-VERSION-py3-none-any.whl, which the notebooks install"
	@echo "make gallery          run the notebooks on the tiny policy into $(GALLERY), pages to open or to serve"
	@echo "make pictures         the same, and renew the pictures of the notebooks and of notes/gallery.md; needs Chromium"

demo: .venv/.installed
	$(BIN)/grpo-kit demo $(if $(FORCE),--force)

demo-environments: .venv/.installed
	$(BIN)/grpo-kit demo --environments $(if $(FORCE),--force)

test: .venv/.installed-test
	$(TESTS) $(ARGS)

test-fast: .venv/.installed-test
	$(TESTS) -m "not slow" $(ARGS)

# Counting lines slows every test down, so only this target does it.
coverage: .venv/.installed-test
	$(TESTS) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: .venv/.installed-test
	$(BIN)/python notebooks/build.py

wheel: .venv/.installed
	@$(BIN)/python -c "from pathlib import Path; from grpo_kit.kaggle import wheels; print(wheels.build_own_wheel(Path('dist')))"

gallery: .venv/.installed-test
	$(BIN)/python notebooks/gallery.py

pictures: .venv/.installed-test
	$(BIN)/python notebooks/gallery.py --pictures
	$(BIN)/python notebooks/build.py

# An installed torch (Colab, Kaggle) is used as it is; otherwise the pinned one is installed before anything requires it.
.venv/.installed: requirements.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11, 3.12 or 3.13 was found; install one, or set PYTHON=/path/to/python." >&2; exit 2; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	  echo "using the torch of $(PYTHON)"; $(PYTHON) -m venv --system-site-packages .venv; \
	else $(PYTHON) -m venv .venv; fi
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(BIN)/python -m pip install -q $(TORCH_INDEX) $(TORCH); }
	@echo "installing grpo-kit and its requirements"
	@$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "installing the test extras"
	@$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

clean:
	rm -rf .venv dist runs submission/submission.zip $(GALLERY)
