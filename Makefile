# pikfix: `make demo` and `make test` set up everything they need.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
# More words for pip, such as --index-url for a mirror, or
# --extra-index-url https://download.pytorch.org/whl/cpu for a PyTorch without CUDA.
PIP_ARGS ?=
CHECKPOINT ?= checkpoints/compact.safetensors
REPOSITORY ?= model_repository

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := batch cli client evaluation export gateway inference kernels layers photos protocol references serving \
	systems training
CODE := $(PACKAGES) model_repository examples benchmarks tests

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per set of extras: a second run installs nothing and needs no network.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pikfix needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[rtx]' || \
		{ echo 'TensorRT for RTX cannot be installed here: no engine is built by the tests'; test -z "$$CI"; }
	touch $@

$(REPOSITORY)/manifest.json: $(VENV)/.demo $(CHECKPOINT) $(wildcard export/*.py export/*/*.py layers/*.py inference/*.py systems/*.py systems/*/*.py systems/*/*/*.py kernels/*.py)
	$(BIN)/pikfix export $(CHECKPOINT) -o $(REPOSITORY)

.PHONY: install
install: $(VENV)/.dev ## Create .venv with everything for development

.PHONY: export
export: $(REPOSITORY)/manifest.json ## Export the shipped checkpoint into model_repository

.PHONY: demo
demo: $(VENV)/.demo ## Restore a damaged sample photo through a real Triton server
	$(BIN)/python examples/demo.py --checkpoint $(CHECKPOINT) -o demo

.PHONY: serve
serve: $(REPOSITORY)/manifest.json ## Serve the model repository on loopback
	$(BIN)/pikfix serve --model-repository $(REPOSITORY)

# Two workers; files stay whole, so that a server or an export is made once for those who share it.
# A worker that crashes is not replaced: with whole files, the run would then wait for ever.
# Any order has to do: `make test ORDER=` shuffles, and --randomly-seed=N in PYTEST_ARGS repeats the
# order that a run prints at its end.
ORDER ?= --randomly-dont-reorganize
PYTEST_ARGS ?=
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 --durations 20 $(ORDER)

.PHONY: test
test: $(VENV)/.dev ## Run all tests (no GPU needed); more words for pytest in PYTEST_ARGS
	$(PYTEST) $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.dev ## Run the tests without servers, compiling and training runs
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

.PHONY: test-engines
test-engines: $(VENV)/.dev ## Build every engine of both presets in every precision (minutes)
	$(BIN)/python -m pytest -q -m engines tests/export

# The client and the command line alone, on whatever Python: by default the newest there is.
NEWEST ?= $(shell ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.*/bin/python3 2>/dev/null | sort -V | tail -1)
.PHONY: test-base
test-base: ## Install the base package alone on the newest Python and try the client
	rm -rf build/base build/lib
	$(or $(NEWEST),$(PYTHON)) -m venv build/base
	build/base/bin/python -m pip install --quiet $(PIP_ARGS) .
	build/base/bin/python tests/base_install.py

.PHONY: bench
bench: $(VENV)/.dev $(REPOSITORY)/manifest.json ## Measure latency and capacity (minutes, on an idle machine)
	$(BIN)/python benchmarks/latency.py --model-repository $(REPOSITORY) --checkpoint $(CHECKPOINT)
	$(BIN)/python benchmarks/load/capacity.py --model-repository $(REPOSITORY)

# mypy finds the packages through the links in src/; what it prints are the files behind them.
MYPY := $(BIN)/mypy
REAL_PATHS := sed 's|^src/pikfix/||'

.PHONY: lint
lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(MYPY) $(patsubst %,-p pikfix.%,$(PACKAGES) model_repository) | $(REAL_PATHS)

# The stubs have two slips that no parser takes: an argument called `in`, and one without a default
# after others with theirs.
.PHONY: lint-gpu
lint-gpu: $(VENV)/.dev ## Check the calls into TensorRT against its types (two small wheels)
	rm -rf build/gpu
	$(BIN)/python -m pip install --quiet --no-deps $(PIP_ARGS) -c constraints.txt --target build/gpu \
		torch-tensorrt tensorrt-stubs
	sed -i -e 's/, in: /, in_: /' -e '/def add_scale_nd/ s/ = None//g' \
		build/gpu/tensorrt_bindings/tensorrt.pyi
	MYPYPATH=build/gpu $(MYPY) -p pikfix.export | $(REAL_PATHS)

.PHONY: clean
clean: ## Remove the environment and everything generated
	rm -rf $(VENV) demo build src/*.egg-info $(REPOSITORY)/damage $(REPOSITORY)/restore $(REPOSITORY)/tone $(REPOSITORY)/similarity \
		$(REPOSITORY)/colorize $(REPOSITORY)/latent* $(REPOSITORY)/draw_faces $(REPOSITORY)/manifest.json
