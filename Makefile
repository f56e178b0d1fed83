# make demo | test | test-all | lint | bench | clean      (everything happens in .venv; nothing else needs to be done by hand)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TENSORRT := 10.16.1.11 11.4.0.106# whose Python bindings the tests read
INPUTS := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
DEMO_OUT := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-all lint bench clean venv
.DELETE_ON_ERROR:

demo: $(STAMP)
	@mkdir -p runs
	$(BIN)/fastnas search --space spnas --out $(DEMO_OUT)
	@echo "Report: $(CURDIR)/$(DEMO_OUT)/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .

bench: $(STAMP)
	@set -e; for file in bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

venv: $(STAMP)

# torch and setuptools come first: the operators are built against the torch that they will run in.
$(STAMP): $(INPUTS)
	@command -v $${CXX:-g++} >/dev/null || { \
	  echo "make: no C++ compiler ($${CXX:-g++}): install g++ (Debian, Ubuntu: apt-get install g++) or set CXX" >&2; exit 1; }
	@chosen=; for python in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' 2>/dev/null; then chosen=$$python; break; fi; done; \
	if [ -z "$$chosen" ]; then \
	  echo "make: fastnas needs Python 3.11 or newer ($(PYTHON) is $$($(PYTHON) -V 2>&1)): set PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  rm -rf $(VENV) && $$chosen -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $$chosen cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; fi
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools pybind11 torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt tensorrt-rtx && \
	  for version in $(TENSORRT); do $(BIN)/python -m pip download -q --disable-pip-version-check --no-deps -d $(VENV)/tensorrt-wheels \
	    tensorrt-cu13-bindings==$$version || exit 1; done || \
	  echo "make: no TensorRT-RTX or no bindings of TensorRT for this machine: their tests will be skipped"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis fastnas/ops/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
