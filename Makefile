SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOMS := bench calibration cli common contract export models runtime targets

# What `make export` builds; a zoo name or path/to/module.py:factory.
MODEL ?= aura-hard
override MODEL := $(patsubst aura,aura-hard,$(MODEL))
SLUG := $(subst /,-,$(subst :,-,$(subst .py,,$(MODEL))))
STEPS ?= 100000
# Where torch comes from: an index, none for pip's own; PyTorch's CPU builds where they can be reached.
TORCH_INDEX ?=
# Processes that run the tests; each holds a torch.
JOBS ?= 2
BUILD := build

# Without the devices' files: a bundle depends on one of those at most.
SOURCES = $(shell find $(1) -name '*.py' -o -name '*.safetensors')
HOST_PROFILE := targets/profiles/cpu-$(subst _,-,$(shell uname -m)).toml
EXPORTER = $(call SOURCES,cli common export models contract runtime) targets/profile.py targets/toml_tables.py $(HOST_PROFILE)
AURA := $(BUILD)/aura-hard

.PHONY: help setup dev run picture test test-slow test-tensorrt test-aarch64 aarch64 cases house check lint types export matrix bench bench-native bench-overhead bench-peers bench-stack soak drift precision-table train-aura train-delta train-gru lock wheel clean distclean view

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# --- environments: one virtual environment, grown as verbs need it -------------------------------

define install
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing stategate[$(1)] with pinned versions"
	@index=$$($(BIN)/python scripts/torch_index.py $(TORCH_INDEX)) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    $${index:+--extra-index-url "$$index"} -e ".[$(1)]"
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
	  $(if $(RANGED),--ranges $(RANGES)) --out $(EXPORT)
	$(if $(TARGET),$(BIN)/stategate fits $(EXPORT) --target $(TARGET))

$(RANGES): $(EPISODE) $(EXPORTER) $(call SOURCES,calibration) | $(VENV)/.run
	@$(BIN)/stategate export $(MODEL) --out $(BUILD)/export/$(SLUG)
	@$(BIN)/stategate ranges $(BUILD)/export/$(SLUG) --episode $< --out $@

$(BUILD)/export/$(SLUG)-episode.npz: $(call SOURCES,models contract) | $(VENV)/.run
	@$(BIN)/stategate episode $(MODEL) --out $@

# --- every model in every precision for every device: one export each, then one report a device ---

MATRIX := $(BUILD)/matrix
MODELS := aura-hard gdn2-hard gru-few gated-deltanet kda gated-deltanet2 mamba2 trim-kv sega lstm gru mingru
PRECISIONS := float32 float16-weights int8-weights int4-weights int8
TARGETS := $(sort $(patsubst targets/profiles/%.toml,%,$(wildcard targets/profiles/*.toml)))
EXPORTS := $(foreach m,$(MODELS),$(PRECISIONS:%=$(MATRIX)/exports/$(m)/%))

matrix: $(TARGETS:%=$(MATRIX)/targets/%/report.json) ## Every model x precision x target -> build/matrix/; try -j2
	@$(BIN)/python -m lab matrix $(MATRIX)

$(MODELS:%=$(MATRIX)/exports/%/int8.log): $(MATRIX)/exports/%/int8.log: $(MATRIX)/exports/%/ranges.json
$(EXPORTS:=.log): $(EXPORTER) | $(VENV)/.run

# A refusal (exit code 1 or 2) is a result: it is kept and not tried again. What the machine did is none.
$(EXPORTS:=.log): $(MATRIX)/exports/%.log:
	@mkdir -p $(@D) && rm -rf $(@D)/$(*F)
	@echo "exporting $(*D) in $(*F)"
	@$(BIN)/stategate export $(*D) --precision $(*F) $(if $(filter int8,$(*F)),--ranges $(@D)/ranges.json) \
	  --out $(@D)/$(*F) > $@.part 2>&1 || test $$? -le 2
	@! grep -A99 -E '^(Traceback|MissingDependencyError|(OS|FileNotFound|FileExists|NotADirectory|IsADirectory|Permission|BlockingIO)Error: )|\[Errno' $@.part
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
	$(BIN)/stategate bench-overhead $(AURA)/bundle --out $(BUILD)/bench

# What each environment of a peer holds beside stategate itself; aura-fast has a native engine too.
peer-floor := onnx
peer-onnxruntime := onnx onnxruntime
peer-torch := onnx torch torchao
peer-executorch := onnx executorch
peer-openvino := onnx openvino nncf
# Its converter imports protobuf without asking for it.
peer-litert := onnx litert-torch protobuf
peer-mnn := MNN
PEERS := floor onnxruntime torch executorch openvino litert mnn
STACKED := onnxruntime torch openvino litert mnn
FAST := $(BUILD)/aura-fast/bundle

bench-peers: $(PEERS:%=$(BUILD)/peers/%/.made) $(FAST)/manifest.json ## The same step in other runtimes, gigabytes of them -> build/bench/peers.json
	$(BIN)/python -m lab peers $(FAST) --envs $(BUILD)/peers --out $(BUILD)/bench

$(FAST)/manifest.json: $(AURA)/calibration.json $(call SOURCES,export models contract targets runtime) | $(VENV)/.run
	$(BIN)/stategate export aura-hard --calibration $< --engines onnxruntime,native --out $(@D)

# A peer that cannot be installed is listed with its last words, and does not stop the others.
$(BUILD)/peers/%/.made: pyproject.toml
	@echo "peer $*: $(peer-$*)"; rm -rf $(@D); mkdir -p $(@D); $(PYTHON) -m venv $(@D)/venv
	@$(@D)/venv/bin/python -m pip install --quiet --disable-pip-version-check -e . $(peer-$*) > $(@D)/log 2>&1 \
	  || tail -n 1 $(@D)/log | tee $(@D)/error.txt
	@touch $@

bench-native: $(FAST)/manifest.json $(PEERS:%=$(BUILD)/peers/%/.made) ## Native engine, peers and plain C -> build/bench/native.json
	$(BIN)/python -m lab bench-native $(FAST) --envs $(BUILD)/peers --out $(BUILD)/bench

# A step whose weights are megabytes: each precision is a race of its own, kept until its bundle changes.
STACK := $(BUILD)/stack
stack-float32 :=
# Each runtime rounds in a way of its own, activations too by default; our own rounding costs 0.007.
stack-int8-weights := --float $(STACK)/float32 --tolerance 0.02
stack-int8-all := $(stack-int8-weights)
RACES := float32 int8-weights int8-all
plan-int8-all := docs/examples/int8-all.json
.SECONDARY: $(RACES:%=$(STACK)/%/manifest.json)

bench-stack: $(RACES:%=$(BUILD)/bench/stack-%/native.json) ## 7.9 million parameters in float32 and int8, and peers -> build/bench/stack-*/native.json

$(STACK)/%/manifest.json: docs/examples/stack.py $(call SOURCES,export models contract targets runtime) | $(VENV)/.run
	rm -rf $(@D)
	$(BIN)/stategate export $<:stack --precision $(or $(plan-$*),$*) --engines onnxruntime,native --out $(@D)

$(BUILD)/bench/stack-%/native.json: $(RACES:%=$(STACK)/%/manifest.json) $(STACKED:%=$(BUILD)/peers/%/.made)
	$(BIN)/python -m lab bench-native $(STACK)/$* $(stack-$*) --burst 50 --rounds 12 --envs $(BUILD)/peers --out $(@D)

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

# A candidate that is beyond its limits has a report and no bundle.
$(BUILD)/drift/%/drift.json: $(AURA)/bundle/manifest.json $(AURA)/episode-$(STEPS).npz $(call SOURCES,calibration export)
	$(BIN)/stategate export aura-hard --calibration $(AURA)/calibration.json $(drift-$*) --out $(@D)/candidate
	$(BIN)/stategate drift $(AURA)/bundle $(@D)/candidate --episode $(AURA)/episode-$(STEPS).npz --out $(@D) \
	  --seal $(@D)/bundle || test $$? = 1

# --- what precision costs: a folder a model, a folder a plan in it; `make -j2` is welcome ----------

PLANNED := $(BUILD)/precision
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SPEECH = $(wildcard $(addprefix $(SITE)/moonshine_voice/assets/,beckett.wav endgame_nagg_nell.wav two_cities.wav))

# How a model becomes a bundle, and what names its states if no gate guards them.
from-aura-hard := export aura-hard --calibration $(AURA)/calibration.json
from-gdn2-hard := export gdn2-hard --calibration $(PLANNED)/gdn2-hard/calibration.json
from-gru-few := export gru-few
from-silero-vad = adopt $(SITE)/silero_vad/data/silero_vad_op18_ifless.onnx --dim batch=1 --dim sequence=576 --const sr=16000 --yes
state-silero-vad := state=

# name of a plan: options, for the model $(1)
plan-state-float16 = --state-storage $(state-$(1))float16
plan-state-int8-rows = --state-storage $(state-$(1))int8
plan-state-int8-rows-fed-back = $(plan-state-int8-rows) --error-feedback
plan-state-int8-tensor = --state-storage $(state-$(1))int8-tensor
plan-state-int8-tensor-fed-back = $(plan-state-int8-tensor) --error-feedback
plan-weights-int4 = --precision int4-weights
plan-weights-int8 = --precision int8-weights
plan-weights-int8-activations-int8 = --precision int8 --ranges $(PLANNED)/$(1)/ranges.json
plan-weights-int8-state-float16 = $(plan-weights-int8) $(plan-state-float16)
before-weights-int8-activations-int8 = $(BIN)/stategate episode $(1) --steps 4096 --seed 5 --out $(PLANNED)/$(1)/ranges.npz && \
  $(BIN)/stategate ranges $(PLANNED)/$(1)/float32/bundle --episode $(PLANNED)/$(1)/ranges.npz --out $(PLANNED)/$(1)/ranges.json &&
PLANS := state-float16 state-int8-rows state-int8-rows-fed-back state-int8-tensor state-int8-tensor-fed-back \
  weights-int4 weights-int8 weights-int8-activations-int8 weights-int8-state-float16

precision-table: $(VENV)/.test ## Plans of four models: size, speed, drift, task -> docs/precision.md, build/bench/precision.json

$(PLANNED)/silero-vad/episode/.recorded: | $(VENV)/.test
	@$(BIN)/stategate episode-wav $(SPEECH) --rate-hz 16000 --input input --window 576 --hop 512 --out $(@D)
	@touch $@

$(PLANNED)/%/episode/.recorded: $(call SOURCES,models contract) | $(VENV)/.test
	@$(BIN)/stategate episode $* --steps 10000 --out $(@D)/held-out.npz
	@touch $@

$(PLANNED)/gdn2-hard/calibration.json: $(call SOURCES,calibration models contract) | $(VENV)/.test
	@$(BIN)/stategate calibrate gdn2-hard --steps 4096 --episodes 2 --thresholds=0,0.01,0.02,0.03,0.05,0.1,0.3 \
	  --tolerance 0.005 --out $@

# A plan that is refused leaves the reason in place of a bundle.
define precision_rules
precision-table: $(PLANNED)/$(1)/pace.json
$(PLANNED)/$(1)/float32/.done: $(PLANNED)/$(1)/episode/.recorded $(call SOURCES,export models contract targets runtime)
	@$(BIN)/stategate $$(from-$(1)) --episode $(PLANNED)/$(1)/episode --out $$(@D)/bundle
	@touch $$@
$(PLANNED)/$(1)/%/.done: $(PLANNED)/$(1)/float32/.done $(call SOURCES,calibration)
	@rm -rf $$(@D) && mkdir -p $$(@D)
	@if { $$(call before-$$*,$(1)) $(BIN)/stategate $$(from-$(1)) $$(call plan-$$*,$(1)) \
	    --episode $(PLANNED)/$(1)/episode --out $$(@D)/bundle; } 2> $$(@D)/refused.txt; then \
	  rm $$(@D)/refused.txt && $(BIN)/stategate drift $(PLANNED)/$(1)/float32/bundle $$(@D)/bundle \
	    --episode $(PLANNED)/$(1)/episode --steps 10000 --out $$(@D) || test $$$$? = 1; \
	else cat $$(@D)/refused.txt; fi
	@touch $$@
$(PLANNED)/$(1)/pace.json: $(PLANS:%=$(PLANNED)/$(1)/%/.done)
	@$(BIN)/stategate pace $(PLANNED)/$(1)/float32/bundle \
	  $$(patsubst %/manifest.json,%,$$(wildcard $(PLANS:%=$(PLANNED)/$(1)/%/bundle/manifest.json))) --burst 100 --out $$@
endef
$(foreach model,aura-hard gdn2-hard gru-few silero-vad,$(eval $(call precision_rules,$(model))))
$(PLANNED)/aura-hard/float32/.done: $(AURA)/calibration.json
$(PLANNED)/gdn2-hard/float32/.done: $(PLANNED)/gdn2-hard/calibration.json

# An adopted file keeps its weights: `adopt` has no --precision.
$(patsubst %,$(PLANNED)/silero-vad/%/.done,$(filter weights-%,$(PLANS))): $(PLANNED)/silero-vad/float32/.done
	@rm -rf $(@D) && mkdir -p $(@D)
	@echo "ExportError: adopt leaves the weights of a file as they are (docs/adr/0006)" > $(@D)/refused.txt
	@touch $@

precision-table:
	@$(BIN)/python -m lab precision-table $(PLANNED) --out $(BUILD)/bench/precision.json --page docs/precision.md
	@cp $(BUILD)/bench/precision.json docs/precision.json

train-aura: $(VENV)/.run ## Remake the AURA-Mem checkpoint and its table (one core, minutes)
	$(BIN)/python -m lab train aura-hard

train-delta: $(VENV)/.run ## Remake the Gated DeltaNet-2 checkpoint and its table (one core, a quarter of an hour)
	$(BIN)/python -m lab train gdn2-hard

train-gru: $(VENV)/.run ## Remake the GRU checkpoint and its table (one core, minutes)
	$(BIN)/python -m lab train gru-few

# --- quality -------------------------------------------------------------------------------------

test: $(VENV)/.test ## Run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: $(VENV)/.test ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow --ignore=tests/export/test_aarch64.py

cases: $(VENV)/.test ## Run the case list, a line a row -> build/bench/cases.json
	$(BIN)/python -m pytest -q -p tests.cases.report -m case --cases $(BUILD)/bench/cases.json

# TensorRT-RTX's parser and builder need no GPU. 96 MB to load, 233 MB in a folder of their own, so
# that no other test can lean on them.
TENSORRT := $(BUILD)/tensorrt/site
$(TENSORRT)/.installed: | $(VENV)/.test
	@echo "installing TensorRT-RTX into $(TENSORRT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(TENSORRT) tensorrt-rtx-cu13==1.7.1.116
	@touch $@

test-tensorrt: $(TENSORRT)/.installed ## Parse and build every zoo model with TensorRT-RTX, without a GPU
	PYTHONPATH=$(TENSORRT) $(BIN)/python -m pytest tests/tensorrt

CROSS := aarch64-linux-gnu-gcc qemu-aarch64 arm-none-eabi-gcc qemu-system-arm
CROSS_DEBS := gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
A64 := $(BUILD)/aarch64

test-aarch64: aarch64 ## Run C, library and runtime on emulated aarch64, and C on a Cortex-M7
	@command -v $(CROSS) | wc -l | grep -qx $(words $(CROSS)) \
	  || if test $$(id -u) = 0; then apt-get -qq update && apt-get -qq install $(CROSS_DEBS) > /dev/null; \
	  else echo "missing programs; as root: apt-get install $(CROSS_DEBS)"; exit 1; fi
	$(BIN)/python -m pytest -rP tests/export/test_native_cross.py tests/export/test_aarch64.py

aarch64: $(A64)/stategate ## Prepare an emulated aarch64 machine: 150 MB to fetch, no root

$(A64)/stategate: tests/export/aarch64.sh constraints.txt | $(VENV)/.test view
	@echo "fetching an aarch64 Python, its wheels and qemu into $(@D)"
	@PYTHON=$(BIN)/python bash $< $(@D) constraints.txt

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev view ## Check types
	$(BIN)/mypy | sed 's#^\.view/stategate/##'

house: $(VENV)/.test ## The house in figures: lines, loads, words -> build/bench/house.json
	@$(BIN)/python -m lab.house

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

# --- evidence ------------------------------------------------------------------------------------

# Resumable: checkpoints stay in build/evidence, rows in docs/evidence.
.PHONY: evidence-controlled evidence-memory evidence-pages
evidence-controlled: $(VENV)/.run ## Train and measure the controlled benchmark (one core, hours; stop and go on at will)
	$(BIN)/python -m lab controlled train
	$(BIN)/python -m lab controlled measure
	$(BIN)/python -m lab controlled values
	$(BIN)/python -m lab pages

evidence-memory: $(FAST)/manifest.json $(AURA)/episode-$(STEPS).npz ## A growing cache beside the memory, and the bound on what it loses (a minute)
	$(BIN)/python -m lab memory cache $(FAST) --episode $(AURA)/episode-$(STEPS).npz
	$(BIN)/python -m lab memory bound $(FAST) --episode $(AURA)/episode-$(STEPS).npz
	$(BIN)/python -m lab pages

evidence-pages: $(VENV)/.run ## Remake docs/evidence.md and its pictures from docs/evidence
	$(BIN)/python -m lab pages

# --- robots ----------------------------------------------------------------------------------------

SIMULATORS := $(BUILD)/simulators
$(SIMULATORS)/.installed: lab/evidence/robot/simulators.txt | $(VENV)/.test
	@echo "installing simulated robots into $(SIMULATORS)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(SIMULATORS) -r $<
	@touch $@

ROBOT := MUJOCO_GL=disabled PYTHONPATH=$(SIMULATORS) $(BIN)/python -m

.PHONY: evidence-robot evidence-robot-small evidence-robot-page
evidence-robot: $(SIMULATORS)/.installed ## Robots that have to remember, driven by bundles -> docs/evidence-robot.md (resumable, an hour)
	$(ROBOT) lab robot run
	$(ROBOT) lab robot page

evidence-robot-small: $(SIMULATORS)/.installed ## The robots' tests, and a few episodes with the trained policies (a minute)
	$(ROBOT) pytest tests/lab/test_robot_simulators.py

evidence-robot-page: $(VENV)/.test ## Remake docs/evidence-robot.md and its pictures from docs/evidence/robot.json
	$(BIN)/python -m lab robot page
