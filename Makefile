# Two commands: `make reproduce` and `make test`. The first use makes .venv and installs into it.

VENV   ?= .venv
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
PY := $(VENV)/Scripts/python.exe
else
PY := $(VENV)/bin/python
endif
EXTRAS := examples,test,dev
STAMP  := $(VENV)/.installed
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/cpu/*.hpp csrc/cpu/*.cpp)

.PHONY: reproduce test lint sanitize bench docs install clean

reproduce: $(STAMP) ## run the three systems, print their tables beside the talk's, write report/index.html
	$(PY) -m examples.reproduce --out report

test: $(STAMP) ## all tests
	$(PY) -m pytest

lint: $(STAMP) ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

sanitize: $(STAMP) ## the C++ and CUDA kernels under sanitizers; the CUDA kernels compiled for GPUs, where nvcc is
	$(PY) -m tests.sanitize
	$(PY) -m tests.cuda_registers

bench: $(STAMP) ## convolutions and whole training steps beside PyTorch, NumPy and Numba
	$(PY) -m benchmarks.cpu --quick

docs: $(VENV)/.docs ## the site, docs/_build/index.html: lessons (run for it, minutes), code to read, tables, playgrounds
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build

install: $(STAMP)

# uv installs in seconds; where it cannot be had or fails, plain pip does the same.
$(STAMP): $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	( $(PY) -m pip install --quiet --disable-pip-version-check "uv>=0.4" \
	  && $(PY) -m uv pip install --quiet --python $(PY) -e ".[$(EXTRAS)]" ) \
	|| $(PY) -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]"
	$(PY) -c "import minidl; minidl.show_backends()"
	touch $(STAMP)

$(VENV)/.docs: $(STAMP)
	$(PY) -m uv pip install --quiet --python $(PY) -r pyproject.toml --extra docs \
	|| $(PY) -m pip install --disable-pip-version-check -e ".[docs]"
	touch $(VENV)/.docs

clean:
	rm -rf $(VENV) build *.egg-info report docs/_build docs/generated docs/lessons minidl/_C*.so .pytest_cache .mypy_cache .ruff_cache
