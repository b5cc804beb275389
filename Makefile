# Everything runs from .venv, which `make setup` creates. Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
PY := .venv/bin/python
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test proofs coq-packages bench figures notebooks docs lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv and install everything, torch included

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "No '$(PYTHON)' found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -c constraints.txt -e '.[figures,llm,notebooks,docs,test,dev]'
	@touch $@

# What `make reproduce` measures. The embedded model stays on the CPU, where the committed rows were made.
MODEL ?= embedded
EXPERIMENTS ?= $(if $(filter embedded,$(MODEL)),quick,table1 survival)
SEEDS ?= 0
PROFILE ?=
DEVICE = $(if $(filter embedded,$(MODEL)),cpu,auto)
# One folder a model and profile: no name of a model has a colon or a comma.
RUN = out/reproduce/$(subst /,:,$(MODEL))$(PROFILE:%=,%)

ifneq ($(filter reproduce,$(MAKECMDGOALS)),)
ifneq ($(words $(MODEL)):$(MODEL),1:$(firstword $(MODEL)))
$(error MODEL is '$(MODEL)': give one hub id, folder or .gguf file, without spaces)
endif
endif

# Interrupted, it goes on. Checks and predictions are computed again after a change of their code; what was measured
# is not: its key holds a version that is raised by hand, and the page warns of a run of another commit.
# A failed step must not hide the report: every step runs, unless one was interrupted, and the first bad status is
# the target's.
reproduce: setup out/ledger.json out/theory_rows.json  ## check, predict and measure everything, write out/report.html (MODEL=hub id or folder)
	@rm -rf out/report.html out/figures out/toy_rows.json && mkdir -p out/figures
	@status=0; \
	step() { echo "==> $$*"; "$$@" || { bad=$$?; [ $$bad -lt 128 ] || exit $$bad; [ $$status -ne 0 ] || status=$$bad; }; }; \
	step $(PY) -m llm_experiments run $(EXPERIMENTS) --model '$(MODEL)' $(PROFILE:%=--profile '%') --device $(DEVICE) \
		--seeds '$(SEEDS)' --out '$(RUN)'; \
	set --; [ ! -d '$(RUN)' ] || set -- --run '$(RUN)'; \
	step $(PY) -m figures all --rows out/theory_rows.json "$$@" --fresh --toy out/toy_rows.json --out out/figures; \
	step $(PY) -m figures report --ledger out/ledger.json --rows out/theory_rows.json "$$@" \
		--toy out/toy_rows.json --figures out/figures --out out/report.html; \
	exit $$status

THEORY := $(wildcard toytransformer/*.py toytransformer/*/*.py)

# Dated by when they were begun: an edit since then counts as newer.
out/ledger.json: $(READY) $(THEORY)
	@mkdir -p out && rm -f $@ && touch $@.begun
	$(PY) -m toytransformer verify --json $@ || [ -s $@ ]
	@touch -r $@.begun $@ && rm $@.begun

out/theory_rows.json: $(READY) $(THEORY) $(wildcard figures/theory/*.py) figures/store.py
	@mkdir -p out && rm -f $@ && touch $@.begun
	$(PY) -m figures theory --fresh --no-draw --rows $@
	@touch -r $@.begun $@ && rm $@.begun

test: setup  ## run the tests (more options: make test ARGS='-k merging')
	$(PY) -m pytest $(ARGS)

COQ_PACKAGES := coq libcoq-mathcomp-algebra libcoq-mathcomp-algebra-tactics libcoq-interval libcoq-coquelicot \
	libcoq-mathcomp-analysis
COQ_LIBRARIES := mathcomp/algebra mathcomp/algebra_tactics mathcomp/analysis Interval Coquelicot

# Coq alone: no .venv. `make -j2 proofs` builds two files at a time.
proofs:  ## build the machine-checked proofs and print the axioms they rest on
	@here=$$(coqc -where 2>/dev/null) && for library in $(COQ_LIBRARIES); do \
		[ -d "$$here/user-contrib/$$library" ] || exit 1; done || \
		{ echo "The proofs need Coq 8.16 and its libraries; on Debian 12: apt-get install $(COQ_PACKAGES)"; exit 1; }
	@cd proofs && coq_makefile -f _CoqProject -o CoqMakefile
	@$(MAKE) --no-print-directory -C proofs -f CoqMakefile
	@$(PYTHON) proofs/check.py

coq-packages:
	@echo $(COQ_PACKAGES)

bench: setup  ## time our routes against plain NumPy, PEFT and generate
	$(PY) -m benchmarks $(ARGS)

figures: setup  ## draw the figures into out/figures and refresh those in docs (anew: ARGS=--fresh)
	$(PY) -m figures all --out out/figures $(ARGS)
	@for name in first-look answers outcomes; do cp out/figures/$$name.png out/figures/$$name.svg docs/; done

notebooks: setup  ## run the six lessons and write them into out/notebooks (one: ARGS=03_two_adapters)
	$(PY) -m notebooks $(ARGS)

docs: notebooks  ## build the documentation site out/docs, from the docstrings, lessons and proofs
	@rm -rf out/docs
	$(PY) -m sphinx -W --keep-going -q -E -c docs -d out/doctrees . out/docs
	@rm -rf out/doctrees out/jupyter_execute
	$(PY) docs/check_links.py out/docs

lint: setup  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup  ## fix style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment, caches and results
	rm -rf .venv out dist build .pytest_cache .ruff_cache .hypothesis
	@rm -f proofs/CoqMakefile* proofs/.CoqMakefile.d proofs/.*.cache
	find proofs/theories \( -name '*.vo*' -o -name '*.glob' -o -name '.*.aux' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
