# Everything a person types here. Set-up happens by itself, once: its stamps lie in .venv.

# The first Python of 3.11 or later; the packages were tried together with 3.11. Another one: make PYTHON=…
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# The trackers of pyproject.toml and what they import besides packages of the project: 90 MB, 8 s.
TRACKERS := wandb mlflow-skinny trackio databricks-sdk gradio_client opentelemetry-proto opentelemetry-sdk \
	opentelemetry-semantic-conventions sqlparse xxhash

# Quiet, and nothing phones home.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export ORT_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Each process would compile our code again; a test run starts hundreds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo serve test types tests same-result audit lock format fingerprints pages install clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## Run the whole pipeline for the demo subject, and show what it found
	@$(BIN)/dvc repro
	@$(BIN)/python -m zimage summary

serve: $(VENV)/.installed  ## Run a Prefect server with its UI, workers and all deployments, until Ctrl-C
	@exec $(BIN)/python -m flows serve

# The type checker runs beside the tests, which wait for a part of their time. 5: PYTEST selects no test.
test: $(VENV)/.installed  ## Run the tests, the linters and the type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory --jobs 2 types tests

types: $(VENV)/.installed
	@nice $(BIN)/mypy

tests: $(VENV)/.installed
	@$(BIN)/pytest --numprocesses 3 $(PYTEST) || [ $$? = 5 ]

same-result: $(VENV)/.installed  ## Check that the demo's results are those of another commit, to the last bit: BASE=<commit>
	@$(BIN)/python .ci/same_result.py "$(or $(BASE),$(error give the commit to compare with: make same-result BASE=<commit>))"

audit: $(VENV)/.audit  ## Look up known vulnerabilities of the pinned packages, which asks a service for each of them
	@$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
		--format json 2>$(VENV)/audit.log | $(PYTHON) .ci/audit.py $(VENV)/audit.log

lock: $(VENV)/.installed  ## Write infra/requirements.lock from constraints.txt, which asks the package index for each hash
	@$(PIP) --dry-run --ignore-installed --report $(VENV)/project.json '.[pipeline,sign]'
	@$(PIP) --dry-run --ignore-installed --report $(VENV)/insightface.json --no-deps "$$(grep '^insightface==' constraints.txt)"
	@$(BIN)/python .ci/lock.py $(VENV)/project.json $(VENV)/insightface.json >$(VENV)/requirements.lock
	@mv $(VENV)/requirements.lock infra/requirements.lock

format: $(VENV)/.installed  ## Format the code and correct what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

fingerprints: $(VENV)/.installed  ## Write code.yaml, which makes stages stale when their code means something else
	@$(BIN)/python -m zimage fingerprints

pages: $(VENV)/.installed  ## Write infra/settings.md and infra/errors.md from the code
	@$(BIN)/python .ci/pages.py

# In an environment of its own: what it asks for is none of ours.
$(VENV)/.audit:
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit==2.10.1
	@touch $@

install: $(VENV)/.installed  ## Only set up .venv, with the pinned packages

clean:  ## Remove .venv, caches, and the demo's results; never a subject's workspace
	rm -rf $(VENV) .dvc/cache .dvc/tmp .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dvc_plots
	git clean -fdX --quiet data

# torch comes first and alone: where a CPU build of it is at hand, nothing may ask for another one after it.
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later was found; install one, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV): some minutes the first time, nothing later"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

# insightface without what it asks for: its opencv-python and our opencv-python-headless own the same files.
# bitsandbytes where nothing but its tests finds it: diffusers and peft import it at their start if they can. The trackers
# too, without what they ask for: MLflow and Trackio would bring older versions of packages that the project has.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[pipeline,sign,dev]'
	@$(PIP) --no-deps "$$(grep '^insightface==' constraints.txt)"
	@$(PIP) --no-deps --upgrade --target $(VENV)/8bit "$$(grep '^bitsandbytes==' constraints.txt)"
	@$(PIP) --no-deps --upgrade --target $(VENV)/trackers $(TRACKERS)
	@$(BIN)/python -m flows.server.database
	@touch $@
