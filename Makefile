SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD := build
ROOMS := bench calibration cli common contract export models runtime targets

# What `make export` builds: a zoo name, or path/to/module.py:factory.
MODEL ?= aura-hard
override MODEL := $(patsubst aura,aura-hard,$(MODEL))
STEPS ?= 100000
# Index that torch comes from; empty: PyTorch's CPU builds where they can be reached; none: pip's own.
TORCH_INDEX ?=
# Processes that run the tests; each holds a torch.
JOBS ?= 2

# Without the devices' files: a bundle depends on one of those at most.
SOURCES = $(shell find $(1) -name '*.py' -o -name '*.safetensors')
HOST_PROFILE := targets/profiles/cpu-$(subst _,-,$(shell uname -m)).toml
EXPORTER = $(call SOURCES,cli common export models contract runtime) targets/profile.py targets/toml_tables.py $(HOST_PROFILE)
AURA := $(BUILD)/aura-hard

.PHONY: help setup dev view run picture export bench test test-all test-tensorrt test-aarch64 aarch64
.PHONY: cases house check lint types lock wheel docs clean distclean

help: ## Show this list
	@list() { sed -nE 's/^([a-z0-9-]+):.*## /\1\t/p' $$1 | expand -t 21; }; list Makefile; \
	  printf '\nThe laboratory (lab/lab.mk):\n'; list lab/lab.mk

# --- environments: one virtual environment, grown as verbs need it -------------------------------

setup: $(VENV)/.run ## Create .venv with what the main job needs

dev: $(VENV)/.dev view ## Create .venv with everything a developer needs

extras-run := export,bench
# A larger environment holds the smaller ones.
also-test := $(VENV)/.run
also-dev := $(VENV)/.run $(VENV)/.test

$(VENV)/.test $(VENV)/.dev: tests/no-deps.txt
$(VENV)/.run $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt
	@VENV=$(VENV) PYTHON=$(PYTHON) bash scripts/install.sh $(or $(extras-$*),$*) $(TORCH_INDEX)
	@touch $(also-$*) $@

view: ## Link the rooms under .view/stategate for type checkers and editors
	@mkdir -p .view/stategate && cd .view/stategate && for r in $(ROOMS); do ln -sfn ../../$$r $$r; done && ln -sfn ../../stategate/__init__.py __init__.py

# --- the main job --------------------------------------------------------------------------------

run: $(BUILD)/run/memory.png ## Export AURA-Mem, step it 100,000 times, count its writes

$(AURA)/calibration.json: $(call SOURCES,calibration models contract) | $(VENV)/.run
	@$(BIN)/stategate calibrate aura-hard --episodes 1 --steps 16384 --thresholds=-4,-3,-2,-1,0,1 --out $@

$(AURA)/bundle/manifest.json: $(AURA)/calibration.json $(EXPORTER) | $(VENV)/.run
	@$(BIN)/stategate export aura-hard --calibration $< --out $(@D)

$(AURA)/episode-$(STEPS).npz: $(call SOURCES,models contract) | $(VENV)/.run
	@$(BIN)/stategate episode aura-hard --steps $(STEPS) --out $@

# Always steps anew: the figures are this machine's, now.
.PHONY: $(BUILD)/run/ledger.json
$(BUILD)/run/ledger.json: $(AURA)/bundle/manifest.json $(AURA)/episode-$(STEPS).npz
	@$(BIN)/stategate run $(AURA)/bundle --episode $(AURA)/episode-$(STEPS).npz --out $(@D)

$(BUILD)/run/memory.png: $(BUILD)/run/ledger.json
	@$(LAB) plot $<

picture: run ## Copy the picture of `make run` into the README
	cp $(BUILD)/run/memory.svg docs/images/memory.svg

# --- one bundle ----------------------------------------------------------------------------------

SLUG := $(subst /,-,$(subst :,-,$(subst .py,,$(MODEL))))
EXPORT := $(BUILD)/export/$(SLUG)$(addprefix -,$(basename $(notdir $(PRECISION))))$(TARGET:%=-%)
RANGES := $(BUILD)/export/$(SLUG)-ranges.json
RANGED := $(filter int8 %.json,$(PRECISION))
# Recorded inputs that ranges are measured on; a zoo model makes its own.
EPISODE ?= $(BUILD)/export/$(SLUG)-episode.npz

export: $(VENV)/.run $(if $(RANGED),$(RANGES)) ## Export MODEL=.. [TARGET=.. PRECISION=..] into build/export/
	$(BIN)/stategate export $(MODEL) $(TARGET:%=--target %) $(PRECISION:%=--precision %) \
	  $(if $(RANGED),--ranges $(RANGES)) --out $(EXPORT)
	$(if $(TARGET),$(BIN)/stategate fits $(EXPORT) --target $(TARGET))

$(RANGES): $(EPISODE) $(EXPORTER) $(call SOURCES,calibration) | $(VENV)/.run
	@$(BIN)/stategate export $(MODEL) --out $(BUILD)/export/$(SLUG)
	@$(BIN)/stategate ranges $(BUILD)/export/$(SLUG) --episode $< --out $@

$(BUILD)/export/$(SLUG)-episode.npz: $(call SOURCES,models contract) | $(VENV)/.run
	@$(BIN)/stategate episode $(MODEL) --out $@

bench: $(AURA)/bundle/manifest.json ## Measure a step's time, tails, memory and energy -> build/bench/bench.html
	$(BIN)/stategate bench $(AURA)/bundle --out $(BUILD)/bench

# --- quality -------------------------------------------------------------------------------------

test: $(VENV)/.test ## Run the tests, without those that take long
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/.test ## Run the tests and those that take longer
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore=tests/export/test_aarch64.py

cases: $(VENV)/.test ## Run the case list, a line a row -> build/bench/cases.json
	$(BIN)/python -m pytest -q -p tests.cases.report -m case --cases $(BUILD)/bench/cases.json

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev view ## Check types
	$(BIN)/mypy | sed 's#^\.view/stategate/##'

check: lint types test ## Everything a commit must pass

docs: $(VENV)/.dev view ## Build the searchable site into build/site; a link that leads nowhere fails
	$(BIN)/python -m lab manual
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: $(VENV)/.dev ## Build sdist and wheel into dist/
	$(BIN)/python -m build

clean: ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info .view .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## Remove .venv too
	rm -rf $(VENV)

include lab/lab.mk
