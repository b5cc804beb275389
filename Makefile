# Everything runs from .venv, which `make setup` creates. Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
PY := .venv/bin/python
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup values reproduce test proofs coq-packages bench figures notebooks docs lint audit lock format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv and install everything, torch included

$(READY): pyproject.toml constraints.txt requirements.lock
	@command -v $(PYTHON) >/dev/null || \
		{ echo "No '$(PYTHON)' found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --no-deps --require-hashes -r requirements.lock
	$(PY) -m pip install -c constraints.txt -e '.[figures,llm,code,notebooks,docs,test,dev]'
	@touch $@

# pip takes no hashes beside an editable install, so the lock is a file of its own. Torch is not in it: which build
# is right differs from machine to machine.
lock:  ## write requirements.lock, the hashes of every release that constraints.txt names (needs the network)
	$(PYTHON) -m venv out/lock
	out/lock/bin/python -m pip install -q hashin
	sed -E '/^(#|$$|torch==)/d' constraints.txt > requirements.lock
	xargs -d '\n' -a requirements.lock out/lock/bin/hashin -r requirements.lock

# What `make reproduce` measures; PROFILE alone may be empty. The values are data: make does not expand what is in
# them ($(value)), recipes read them from the environment, and `values` refuses what such names never have.
MODEL ?= embedded
EXPERIMENTS ?=
SEEDS ?= 0
PROFILE ?=
override MODEL := $(value MODEL)
override EXPERIMENTS := $(value EXPERIMENTS)
override SEEDS := $(value SEEDS)
override PROFILE := $(value PROFILE)
export MODEL EXPERIMENTS SEEDS PROFILE

values:
	@LC_ALL=C; export LC_ALL; \
	refuse() { printf "error: %s is '%s': give %s\n" $$1 "$$(printf %s "$$2" | tr -cd '[:print:]')" "$$3" >&2; exit 2; }; \
	case "$$MODEL" in ''|.|..|[!A-Za-z0-9_./~]*|*[!A-Za-z0-9_./~@+=-]*) \
		refuse MODEL "$$MODEL" "one hub id, folder or .gguf file, of letters, digits and _ . / ~ @ + = -";; esac; \
	case "$$EXPERIMENTS" in *[!A-Za-z0-9_./\ -]*) \
		refuse EXPERIMENTS "$$EXPERIMENTS" "names of experiments, by space, such as quick survival";; esac; \
	case "$$SEEDS" in ''|*[!0-9,]*) refuse SEEDS "$$SEEDS" "whole numbers by comma, such as 0,1,2";; esac; \
	case "$$PROFILE" in *[!A-Za-z0-9_-]*) refuse PROFILE "$$PROFILE" "the name of a profile, such as small";; esac

# The embedded model stays on the CPU, where the committed rows were made. One folder a model and profile: no name of
# a model has a colon or a comma.
# Interrupted, it goes on. Checks and predictions are computed again after a change of their code; what was measured
# is not: its key holds a version that is raised by hand, and the page warns of a run of another commit.
# A failed step must not hide the report: every step runs, unless one was interrupted, and the first bad status is
# the target's.
reproduce: values setup out/ledger.json out/theory_rows.json  ## check, predict and measure everything, write out/report.html (MODEL=hub id or folder)
	@rm -rf out/report.html out/figures out/toy_rows.json && mkdir -p out/figures
	@status=0; set -f; \
	step() { echo "==> $$*"; "$$@" || { bad=$$?; [ $$bad -lt 128 ] || exit $$bad; [ $$status -ne 0 ] || status=$$bad; }; }; \
	experiments=$$EXPERIMENTS device=auto; \
	if [ "$$MODEL" = embedded ]; then device=cpu; fi; \
	if [ -z "$$experiments" ]; then \
		if [ "$$MODEL" = embedded ]; then experiments=quick; else experiments='table1 survival'; fi; fi; \
	run=out/reproduce/$$(printf %s "$$MODEL" | tr / :)$${PROFILE:+,$$PROFILE}; \
	step $(PY) -m llm_experiments run --model "$$MODEL" $${PROFILE:+--profile "$$PROFILE"} --device $$device \
		--seeds "$$SEEDS" --out "$$run" -- $$experiments; \
	set --; [ ! -d "$$run" ] || set -- --run "$$run"; \
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

out/theory_rows.json: $(READY) $(THEORY) $(wildcard figures/theory/*.py figures/store.py)
	@mkdir -p out && rm -f $@ && touch $@.begun
	$(PY) -m figures theory --fresh --no-draw --rows $@
	@touch -r $@.begun $@ && rm $@.begun

# Two at a time, a file each: what its tests share is made once. More at a time take 2 GB each.
test: setup  ## run the tests (more options: make test ARGS='-k merging')
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

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
	@for name in first-look agreement answers outcomes layers-order kinds recycled; do cp out/figures/$$name.png out/figures/$$name.svg docs/; done

notebooks: setup  ## run the eight lessons and write them into out/notebooks (one: ARGS=03_two_adapters)
	$(PY) -m notebooks $(ARGS)

# A link that leads nowhere is a warning, and a warning fails it.
docs: notebooks  ## build the documentation site out/docs, from the docstrings, lessons and proofs
	@rm -rf out/docs
	$(PY) -m sphinx -W --keep-going -q -E -c docs -d out/doctrees . out/docs
	@rm -rf out/doctrees out/jupyter_execute

lint: setup  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

audit:  ## ask PyPI for known vulnerabilities of the versions in constraints.txt (needs the network)
	@$(PYTHON) tests/audit.py constraints.txt

format: setup  ## fix style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment, caches and results
	rm -rf .venv out dist build .pytest_cache .ruff_cache .hypothesis
	@rm -f proofs/CoqMakefile* proofs/.CoqMakefile.d proofs/.*.cache
	find proofs/theories \( -name '*.vo*' -o -name '*.glob' -o -name '.*.aux' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
