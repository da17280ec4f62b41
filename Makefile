# The commands of this project; `make` alone lists them. VENV=folder and PYTHON=interpreter may be given,
# and TORCH=current for the versions of torch-current/ in an environment of their own.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

TORCH ?= pinned
VENV ?= .venv$(patsubst %,-%,$(filter-out pinned,$(TORCH)))
PINS := $(if $(filter current,$(TORCH)),torch-current/constraints.txt torch-current/overrides.txt,constraints.txt)
READY := $(VENV)/.installed
REAL := data/real
RUN := PATH="$(abspath $(VENV))/bin:$$PATH"

# Another project's modules must not shadow the environment's, and byte code is worth caching: importing
# Composer takes 4 s with it and 12 s without, in every rank.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1
export TOKENIZERS_PARALLELISM := false
export MPLBACKEND := Agg

.PHONY: help setup demo test check lint real table1 transfer lock clean

help: ## list these commands
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10 | sed 's/^/  make /'

$(READY): pyproject.toml $(PINS) scripts/setup.sh
	@scripts/setup.sh $(VENV) $(TORCH)

setup: $(READY) ## make the virtual environment at the pinned versions (the others do it by themselves); TORCH=current: newer ones

demo: $(READY) ## train on generated documents and print what the encoder learnt (minutes on two CPU cores)
	@$(RUN) composer train.py yamls/quickstart.yaml

# A file's tests stay in one process, as they share what it has trained; files in their order, the slow ones first.
IN_PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(READY) ## run the tests (CPU; those that need a GPU run where there is one)
	@$(RUN) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} python -m pytest $(IN_PARALLEL) $(ARGS)

lint: $(READY)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) pyright --pythonpath $(VENV)/bin/python

check: lint test ## ruff, pyright and the tests

real: $(REAL)/tokenizer.json $(REAL)/classes ## train on real pages and pairs, test on pairs held out (Debian or Ubuntu, with npm)
	@$(RUN) composer train.py yamls/pretrain/real_tiny.yaml

# Every run goes on where it was if it is called again, and one that is finished says so.
SEEDS := 17 18 19
TABLE1 := $(foreach seed,$(SEEDS),$(patsubst yamls/table1/%.yaml,runs/%-s$(seed),$(wildcard yamls/table1/*.yaml)))
table1: $(TABLE1) $(REAL)/transfer/.made ## pre-train by each method on generated and on real data, three seeds; -j2 for two runs at once (hours)
	@$(RUN) lcl report $(filter runs/shapes_%,$(TABLE1)) --out runs/table1_shapes.html
	@$(RUN) lcl report $(filter runs/real_%,$(TABLE1)) --out runs/table1_real.html
	@for task in classify_emoji caption; do \
		$(RUN) OMP_NUM_THREADS=1 lcl evaluate --suite yamls/transfer/real/$$task.yaml \
		$(foreach run,$(filter runs/real_%,$(TABLE1)),$(firstword $(subst -s, ,$(run:runs/real_%=%)))=$(run)/encoder); done
	@$(RUN) python scripts/table1.py runs docs/table1.json

# Encoders of one label are seeds of one recipe, and are averaged.
COMPARED := lcl clip generation untrained
transfer: $(foreach name,$(COMPARED),$(SEEDS:%=runs/real_$(name)-s%)) $(REAL)/transfer/.made ## frozen transfer of four of these encoders to real classes and captions (an hour)
	@$(RUN) OMP_NUM_THREADS=1 lcl evaluate --suite yamls/transfer/real \
		$(foreach name,$(COMPARED),$(SEEDS:%=$(name)=runs/real_$(name)-s%/encoder))

.PHONY: $(TABLE1)
$(TABLE1): $(REAL)/tokenizer.json $(REAL)/classes $(REAL)/pairs/.made
	@$(RUN) OMP_NUM_THREADS=1 python train.py yamls/table1/$(firstword $(subst -s, ,$(@F))).yaml run_name=$(@F) \
		seed=$(lastword $(subst -s, ,$(@F))) data.train.shuffle_seed=$(lastword $(subst -s, ,$(@F)))

$(REAL)/packages/.fetched: scripts/fetch_real.sh
	@scripts/fetch_real.sh $(@D) && touch $@

# Pictures stay twice as large as the tiny model sees them: decoding whole screenshots would take most of the time.
$(REAL)/gimp/train/index.json: FOLDER = usr/share/gimp/2.0/help/en
$(REAL)/kicad/train/index.json: FOLDER = usr/share/doc/kicad/help/en
$(REAL)/sklearn/train/index.json: FOLDER = usr/share/doc/python-sklearn-doc/html
$(REAL)/skimage/train/index.json: FOLDER = usr/share/doc/python-skimage-doc/html
MANUALS := $(patsubst %,$(REAL)/%/train/index.json,gimp kicad sklearn skimage)
$(MANUALS): | $(READY) $(REAL)/packages/.fetched
	@$(RUN) lcl convert html $(REAL)/packages/$(FOLDER) $(@D:/train=) --held-out 0.1 --resize 128 \
		--max-tokens 256 --tokens-per-image 36

$(REAL)/pairs/.made: $(MANUALS)
	@for manual in $(MANUALS:$(REAL)/%/train/index.json=%); do \
		$(RUN) lcl convert pairs $(REAL)/$$manual $(REAL)/pairs/$$manual; done && touch $@

$(REAL)/tokenizer.json: | $(REAL)/gimp/train/index.json $(REAL)/stamps/train/index.json $(REAL)/emoji/train/index.json
	@$(RUN) python scripts/train_tokenizer.py $@ $(REAL)/{gimp,stamps,emoji}/train

$(REAL)/stamps/train/index.json: | $(READY) $(REAL)/packages/.fetched
	@$(RUN) lcl convert captions $(REAL)/packages/usr/share/tuxpaint/stamps $(REAL)/stamps --held-out 0.25

$(REAL)/emoji/train/index.json: | $(READY) $(REAL)/packages/.fetched
	@rm -rf $(REAL)/emoji_files
	@$(RUN) python scripts/emoji_pairs.py $(REAL)/packages $(REAL)/emoji_files
	@$(RUN) lcl convert captions $(REAL)/emoji_files $(REAL)/emoji --held-out 0.25

$(REAL)/classes: | $(REAL)/emoji/train/index.json
	@$(RUN) python scripts/class_folders.py $(REAL)/emoji $@

# Emoji are learnt from one artist's drawings and measured on another's of emoji that no training has seen.
$(REAL)/transfer/.made: | $(REAL)/emoji/train/index.json $(REAL)/stamps/train/index.json
	@rm -rf $(REAL)/transfer
	@$(RUN) python scripts/class_folders.py $(REAL)/emoji $(REAL)/transfer/files/emoji \
		--train '*-google.png' --val '*-openmoji.png'
	@$(RUN) python scripts/class_folders.py $(REAL)/stamps $(REAL)/transfer/files/stamps
	@$(RUN) python scripts/digits.py $(REAL)/transfer/files/digits
	@for name in emoji stamps digits; do \
		$(RUN) lcl convert imagefolder $(REAL)/transfer/files/$$name $(REAL)/transfer/$$name; done && touch $@

lock: $(READY) ## pin anew what pyproject.toml asks for, keeping the versions that still fit (needs uv)
	@$(RUN) uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
		--custom-compile-command 'make lock' --no-annotate --quiet --output-file constraints.txt
	@$(RUN) uv pip compile pyproject.toml --extra dev --universal --python-version 3.12 \
		--override torch-current/overrides.txt --custom-compile-command 'make lock' --no-annotate --quiet \
		--output-file torch-current/constraints.txt

clean: ## remove the environment and the caches; runs/ and data/ stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
