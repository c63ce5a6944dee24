SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOMS := bench calibration contract export models runtime targets

# What `make export` builds; a zoo name or path/to/module.py:factory.
MODEL ?= aura-hard
override MODEL := $(patsubst aura,aura-hard,$(MODEL))
SLUG := $(subst /,-,$(subst :,-,$(subst .py,,$(MODEL))))
STEPS ?= 100000
BUILD := build

# Without the devices' files: a bundle depends on one of those at most.
SOURCES = $(shell find $(1) -name '*.py' -o -name '*.safetensors')
HOST_PROFILE := targets/profiles/cpu-$(subst _,-,$(shell uname -m)).toml
EXPORTER = $(call SOURCES,export models contract runtime) targets/profile.py targets/rows.py $(HOST_PROFILE)
AURA := $(BUILD)/aura-hard

.PHONY: help setup dev run picture test test-slow test-tensorrt check lint types export matrix bench bench-overhead soak drift train-aura lock wheel clean distclean view

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# --- environments: one virtual environment, grown as verbs need it -------------------------------

define install
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing stategate[$(1)] with pinned versions"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(1)]"
	@touch $@
endef

$(VENV)/.run: pyproject.toml constraints.txt
	$(call install,export$(comma)bench)

$(VENV)/.test: pyproject.toml constraints.txt tests/no-deps.txt
	$(call install,test)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/no-deps.txt
	@touch $(VENV)/.run

$(VENV)/.dev: pyproject.toml constraints.txt tests/no-deps.txt
	$(call install,dev)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/no-deps.txt
	@touch $(VENV)/.run $(VENV)/.test

comma := ,

setup: $(VENV)/.run ## Create .venv with what the main job needs

dev: $(VENV)/.dev view ## Create .venv with everything a developer needs

view: ## Link the rooms under .view/stategate for type checkers and editors
	@mkdir -p .view/stategate && cd .view/stategate && for r in $(ROOMS); do ln -sfn ../../$$r $$r; done

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
	@$(BIN)/stategate plot $<

picture: run ## Take the picture of `make run` into the README
	cp $(BUILD)/run/memory.svg docs/images/memory.svg

# --- other bundles -------------------------------------------------------------------------------

EXPORT := $(BUILD)/export/$(SLUG)$(addprefix -,$(basename $(notdir $(PRECISION))))$(TARGET:%=-%)
RANGES := $(BUILD)/export/$(SLUG)-ranges.json
RANGED := $(filter int8 %.json,$(PRECISION))
# Recorded inputs for ranges; a zoo model's own if left out.
EPISODE ?= $(BUILD)/export/$(SLUG)-episode.npz

export: $(VENV)/.run $(if $(RANGED),$(RANGES)) ## Export MODEL=.. [TARGET=.. PRECISION=..] into build/export/
	$(BIN)/stategate export $(MODEL) $(TARGET:%=--target %) $(PRECISION:%=--precision %) \
	  $(if $(RANGED),--ranges $(RANGES)) $(if $(ACCEPT),--accept "$(ACCEPT)") --out $(EXPORT)
	$(if $(TARGET),$(BIN)/stategate fits $(EXPORT) --target $(TARGET))

$(RANGES): $(EPISODE) $(EXPORTER) $(call SOURCES,calibration) | $(VENV)/.run
	@$(BIN)/stategate export $(MODEL) --out $(BUILD)/export/$(SLUG)
	@$(BIN)/stategate ranges $(BUILD)/export/$(SLUG) --episode $< --out $@

$(BUILD)/export/$(SLUG)-episode.npz: $(call SOURCES,models contract) | $(VENV)/.run
	@$(BIN)/stategate episode $(MODEL) --out $@

# --- every model in every precision for every device: one export each, then one report a device ---

MATRIX := $(BUILD)/matrix
MODELS := aura-hard gated-deltanet kda gated-deltanet2 mamba2 trim-kv sega lstm gru mingru
PRECISIONS := float32 float16-weights int8-weights int4-weights int8
TARGETS := $(sort $(patsubst targets/profiles/%.toml,%,$(wildcard targets/profiles/*.toml)))
EXPORTS := $(foreach m,$(MODELS),$(PRECISIONS:%=$(MATRIX)/exports/$(m)/%))

matrix: $(TARGETS:%=$(MATRIX)/targets/%/report.json) ## Every model x precision x target -> build/matrix/; try -j2
	@$(BIN)/stategate matrix $(MATRIX)

$(MODELS:%=$(MATRIX)/exports/%/int8.log): $(MATRIX)/exports/%/int8.log: $(MATRIX)/exports/%/ranges.json
$(EXPORTS:=.log): $(EXPORTER) | $(VENV)/.run

# A refusal (exit code 1 or 2, and no traceback) is a result: it is kept and not tried again.
$(EXPORTS:=.log): $(MATRIX)/exports/%.log:
	@mkdir -p $(@D) && rm -rf $(@D)/$(*F)
	@echo "exporting $(*D) in $(*F)"
	@$(BIN)/stategate export $(*D) --precision $(*F) $(if $(filter int8,$(*F)),--ranges $(@D)/ranges.json) \
	  --out $(@D)/$(*F) > $@.part 2>&1 || test $$? -le 2
	@! grep -A99 '^Traceback' $@.part
	@mv $@.part $@

$(MODELS:%=$(MATRIX)/exports/%/ranges.json): $(MATRIX)/exports/%/ranges.json: $(MATRIX)/exports/%/float32.log $(call SOURCES,calibration)
	@$(BIN)/stategate episode $* --out $(@D)/episode.npz > $(@D)/ranges.txt 2>&1
	@$(BIN)/stategate ranges $(@D)/float32 --episode $(@D)/episode.npz --out $@ > $(@D)/ranges.txt 2>&1

$(MATRIX)/targets/%/report.json: targets/profiles/%.toml $(EXPORTS:=.log) $(wildcard targets/media/*.toml targets/costs/*.toml targets/ladders/*.toml) $(call SOURCES,bench targets)
	@rm -rf $(@D)
	@$(BIN)/stategate retarget $$(for b in $(EXPORTS); do test ! -e $$b/manifest.json || echo $$b; done) \
	  --target $* --out $(@D) > /dev/null || test $$? = 1
	@test -e $@

bench: bench-overhead ## Measure a step against plain ONNX Runtime, as a ratio in one run

bench-overhead: $(AURA)/bundle/manifest.json ## What each option of a session costs -> build/bench/overhead.json
	$(BIN)/stategate bench $(AURA)/bundle --out $(BUILD)/bench

soak: $(AURA)/bundle/manifest.json $(AURA)/episode-$(STEPS).npz ## A million steps: growth and pace -> build/bench/soak.json
	$(BIN)/stategate soak $(AURA)/bundle --episode $(AURA)/episode-$(STEPS).npz --out $(BUILD)/bench

# name of a candidate: how its states are stored
drift-float16 := --state-storage float16
drift-int8 := --state-storage int8
drift-int8-tensor := --state-storage int8-tensor
drift-int8-fed-back := --state-storage int8 --error-feedback
drift-int8-tensor-fed-back := --state-storage int8-tensor --error-feedback
DRIFTS := float16 int8 int8-tensor int8-fed-back int8-tensor-fed-back

drift: $(DRIFTS:%=$(BUILD)/drift/%/drift.json) ## AURA-Mem in smaller states beside float32 -> build/drift/*/drift.html

# Limits of the parity check are wide: it is the drift that is looked at.
$(BUILD)/drift/%/drift.json: $(AURA)/bundle/manifest.json $(AURA)/episode-$(STEPS).npz $(call SOURCES,calibration export)
	$(BIN)/stategate export aura-hard --calibration $(AURA)/calibration.json $(drift-$*) \
	  --max-output-error 10 --max-flip-rate 1 --out $(@D)/bundle
	$(BIN)/stategate drift $(AURA)/bundle $(@D)/bundle --episode $(AURA)/episode-$(STEPS).npz --out $(@D) || test $$? = 1

train-aura: $(VENV)/.run ## Remake the AURA-Mem checkpoint and its table (one core, minutes)
	$(BIN)/stategate train-aura

# --- quality -------------------------------------------------------------------------------------

test: $(VENV)/.test ## Run the tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.test ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

# TensorRT-RTX's parser and builder need no GPU. 96 MB to load, 233 MB in a folder of their own, so
# that no other test can lean on them.
TENSORRT := $(BUILD)/tensorrt/site
$(TENSORRT)/.installed: | $(VENV)/.test
	@echo "installing TensorRT-RTX into $(TENSORRT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(TENSORRT) tensorrt-rtx-cu13==1.7.1.116
	@touch $@

test-tensorrt: $(TENSORRT)/.installed ## Parse and build every zoo model with TensorRT-RTX, without a GPU
	PYTHONPATH=$(TENSORRT) $(BIN)/python -m pytest tests/tensorrt

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev view ## Check types
	$(BIN)/mypy | sed 's#^\.view/stategate/##'

check: lint types test ## Everything a commit must pass

lock: $(VENV)/.dev ## Resolve constraints.txt anew
	$(BIN)/python -m pip install --quiet uv
	@echo "torch==2.13.0" > $(VENV)/torch-pin.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-annotate --no-header -c $(VENV)/torch-pin.txt -o $(VENV)/lock.txt > /dev/null
	@{ head -2 constraints.txt; grep -vE '^(nvidia-|cuda-|triton)' $(VENV)/lock.txt; } > constraints.new && mv constraints.new constraints.txt

wheel: $(VENV)/.dev ## Build sdist and wheel into dist/
	$(BIN)/python -m build

clean: ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info .view .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## Remove .venv too
	rm -rf $(VENV)
