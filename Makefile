# Both commands start from a bare machine (python3 >= 3.11 and pip):
#   make demo    a small model learns a preference, from nothing, in minutes
#   make test    the test suite
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
# Files of tests are dealt out to one process a core, four at most, in the order of tests/conftest.py; WORKERS=0: no other process.
WORKERS ?= logical
SPREAD := -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Nothing but packages is ever downloaded.
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-fast lint bench bench-losses gpu repro site dist test-oldest install clean

demo: $(INSTALLED)
	$(BIN)/alignlab demo

test: $(TOOLS)
	$(BIN)/python -m pytest $(SPREAD)

# What serves while one works: the rooms one by one, without what takes several ranks, kills or whole runs.
test-fast: $(TOOLS)
	$(BIN)/python -m pytest -q $(SPREAD) -m "not slow" tests/alignlab tests/data tests/losses tests/test_layout.py

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speed beside TRL's trainer, then what alignlab's own parts cost; BENCH="--hh FILE --repeats 5" adds HH-RLHF dialogues.
# An hour on two cores.
bench: $(TOOLS)
	$(BIN)/python benchmarks/speed.py $(BENCH)
	$(BIN)/python benchmarks/costs.py

# Each of the seven losses on the demo's task, three seeds.
bench-losses: $(TOOLS)
	$(BIN)/python benchmarks/bench_losses.py

# On one GPU: attention, whole steps and the tests that need one, TRL beside us, 4-bit, the planner; each part under eight
# minutes; GPU="--part trl" runs one. VENV and TORCH say with which Python and which build of torch (TORCH=torch: CUDA's).
gpu: $(TOOLS)
	$(BIN)/python benchmarks/gpu.py $(GPU)

# What papers claim of the losses, at a size that anyone can rerun: twelve programs, some 50 minutes of processor time; REPRO=--quick: a few.
repro: $(TOOLS)
	for program in bandit noise frontier pareto same groups rankings hybrid reward overoptimised spin iterated; do \
	  $(BIN)/python benchmarks/repro/$$program.py $(REPRO) || exit 1; done

# The pages as a site, in build/site: open its index.html.
site: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# sdist and wheel in dist/, checked; each is then installed into an environment of its own, away from here, and runs the demo
# and a loss from a file. Ten minutes.
dist: $(TOOLS)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/support/dist.py dist/*

# The fast tests on the lowest versions that pyproject.toml allows, in an environment of its own.
OLDEST := $(VENV)-oldest
test-oldest: constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --constraint constraints-oldest.txt --editable '.[near,search]' pytest pytest-timeout pytest-xdist hypothesis scipy
	$(OLDEST)/bin/python -m pytest -q $(SPREAD) -m "not slow" tests/alignlab tests/data tests/losses tests/test_internals.py

install: $(TOOLS)

# torch comes first and alone: where pip has been given an index with CPU builds (PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS), pip takes that build of the version; once it is there, nothing pulls gigabytes of CUDA after it.
# A Python without ensurepip makes a bare environment, which its own pip then fills.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignlab needs Python 3.11 or newer, found " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

# What the tests, the linters, the benchmarks and the site need besides: trackers, an evaluation harness, a server, a browser's driver.
$(TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
