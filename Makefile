# `make help` lists every target. Everything runs in .venv, which `make setup` makes from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATASET ?=
PORT ?= 8000
NAME ?=
JOBS ?= 1000
FAULTS ?= 200
SEED ?= 7
BACKEND ?= production
ARGS ?=
# One process per core; what tests of a file share is made once. A process with torch and its servers takes 2 GB.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "Python 3.11 or 3.12 is needed; try: make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV): PyTorch is large, expect a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## Make the environment and install everything

demo: setup ## Tune sam3-tiny on a concept it does not know, through the HTTP API (DATASET=archive.zip for your own)
	@$(BIN)/python -m demo $(if $(DATASET),--dataset "$(DATASET)") $(ARGS)

serve: setup ## Start the service on this machine (PORT=8000), with broker and workers
	@$(BIN)/sam3-service serve --port $(PORT) $(ARGS)

test: setup ## Run every test that needs no GPU and is not slow
	$(PYTEST) -m 'not slow and not gpu' $(ARGS)

test-all: setup ## Run every test that needs no GPU
	$(PYTEST) -m 'not gpu' $(ARGS)

test-gpu: setup ## Run the tests that need CUDA
	$(BIN)/python -m pytest -m gpu $(ARGS)

faults: setup ## Break real processes under load and check that nothing is lost (JOBS=1000 FAULTS=200 SEED=7 BACKEND=production|embedded)
	@$(BIN)/python -m tests.faults --backend $(BACKEND) --jobs $(JOBS) --faults $(FAULTS) --seed $(SEED) $(ARGS)

format: setup ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

generate: setup ## Make anew what is made of other code: parts of the Python client, docs/reference
	@$(BIN)/python -m codegen

docs: setup ## Build the documentation as a site, into site/ (ARGS=--help for more)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

lint: setup ## Check format and style
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: setup ## Check types
	$(BIN)/mypy

contracts: setup ## Check who may import whom
	$(BIN)/lint-imports

drift: setup ## Check that migrations and models agree
	$(BIN)/python -m pytest tests/service -k 'drift or migration' $(ARGS)

check: lint types contracts drift test ## Everything that must pass before a change lands

lock: ## Write requirements.lock from a fresh environment
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet '.[dev]'
	$(VENV)-lock/bin/pip freeze --exclude sam3-lora-service --exclude-editable > requirements.lock
	rm -rf $(VENV)-lock

# Tools of their own environment: what they bring along is no part of what they look at.
$(VENV)-audit/.installed: Makefile
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' 'cyclonedx-bom>=7.5,<8'
	@touch $@

audit: $(VENV)-audit/.installed ## Ask the index which versions in requirements.lock have known vulnerabilities
	$(VENV)-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict $(ARGS)

sbom: setup $(VENV)-audit/.installed ## Write sbom.json (CycloneDX) of what is installed, with licences
	$(VENV)-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python $(ARGS)

screenshots: setup ## Take pictures of all pages, with chromium, into docs/images/pages
	@$(BIN)/python -m tests.pages.tour $(ARGS)

bench: setup ## List the benchmarks, or run one (NAME=learning)
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

pretrain: setup ## Pretrain sam3-tiny again (hours on a CPU)
	$(BIN)/python -m pretraining.sam3_tiny $(ARGS)

clean: ## Remove the environment and all caches; data stays
	rm -rf $(VENV) $(VENV)-audit sbom.json site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info

.PHONY: help setup demo serve test test-all test-gpu faults screenshots generate docs format lint types contracts drift check lock audit sbom bench pretrain clean
