# make demo        set up .venv, then train a tiny model and lift its reward
# make test        set up .venv, then the tests (<= 15 minutes on two cores)
# make test-slow   those that start processes, build packages or train (<= 30 minutes)
# make test-deepspeed   training in shares, with DeepSpeed in an environment of its own (<= 5 minutes)
#                  (all three run PROCESSES=2 tests at a time)
# make bench       peers' environments, benchmarks, table
# make lint        ruff and clang-format
# make native      rebuild the native libraries in place
# make cuda-compile   compile every .cu for sm_80, sm_90 and sm_100; needs nvcc, no GPU
# make test-gpu bench-gpu [PYTHON=python3]   on an NVIDIA GPU; a PYTHON that is named is used as it is
#
# Nothing but make and Python >= 3.11 is needed first. What setup.py reads works here too, e.g.
# FASTRL_BUILD=none make test
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# One stamp for each kind of build, so that FASTRL_BUILD=none after a full build is not taken for done.
READY := $(VENV)/.ready-$(or $(FASTRL_BUILD),auto)
LINT_READY := $(VENV)/.lint-ready
NAMED_PYTHON := $(if $(filter command environment,$(word 1,$(origin PYTHON))),$(PYTHON))
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.12 python3.11 python3.13; do \
  $$p -c '$(OLD_ENOUGH)' 2>/dev/null && echo $$p && break; done)
endif
# The interpreter of test-gpu and bench-gpu: the one that was named, else the environment's.
GPU_PYTHON := $(or $(NAMED_PYTHON),$(BIN)/python)

NATIVE_SOURCES := $(wildcard csrc/*.* csrc/*/*.*) CMakeLists.txt setup.py
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test test-slow test-deepspeed bench lint native cuda-compile test-gpu bench-gpu gpu-native clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile | sed '/^$$/q'

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@test -n "$(PYTHON)" || { echo "fastrl needs Python >= 3.11; name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c '$(OLD_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing (torch first, so that nothing else picks another)"
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) setuptools pybind11 cmake ninja
	@$(PIP_INSTALL) --no-build-isolation -e '.[test,examples]'
	@$(BIN)/fastrl env --native
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY)
	$(BIN)/python examples/quickstart.py

# A file's tests stay in one process, so that what they share is made once.
PROCESSES ?= 2
PYTEST := -m pytest -n $(PROCESSES) --dist loadfile -q --durations=10

test: $(READY)
	$(BIN)/python $(PYTEST) tests -m "not slow and not gpu"

test-slow: $(READY)
	$(BIN)/python $(PYTEST) tests -m "slow and not gpu"

# The environment's packages and DeepSpeed, which has no wheel and needs torch to be built.
DEEPSPEED := .venvs/deepspeed
DEEPSPEED_READY := $(DEEPSPEED)/.ready
SITE := import sysconfig; print(sysconfig.get_path("purelib"))

$(DEEPSPEED_READY): constraints.txt | $(READY)
	@echo "making $(DEEPSPEED)"
	@rm -rf $(DEEPSPEED) && $(BIN)/python -m venv --without-pip $(DEEPSPEED)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	  > "$$($(DEEPSPEED)/bin/python -c '$(SITE)')/environment.pth"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip --python $(DEEPSPEED)/bin/python install --quiet \
	  --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed
	@touch $@

test-deepspeed: $(DEEPSPEED_READY)
	$(DEEPSPEED)/bin/python $(PYTEST) tests/distributed tests/examples/test_launch_configs.py \
	  -k "zero or deepspeed_num_gpus"

bench: $(READY)
	$(BIN)/python benchmarks/run.py

$(LINT_READY): pyproject.toml constraints.txt $(READY)
	@$(PIP_INSTALL) ruff clang-format
	@touch $@

lint: $(LINT_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu,$(NATIVE_SOURCES))

native: $(READY)
	$(BIN)/python setup.py --quiet build_ext --inplace

# CUDA_HOME, then nvcc on PATH, then /usr/local/cuda, as in setup.py.
NVCC := $(or $(if $(CUDA_HOME),$(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_OBJECTS := $(patsubst csrc/cuda/%.cu,build/cuda-compile/%.o,$(wildcard csrc/cuda/*.cu))

cuda-compile: $(CUDA_OBJECTS)
	@echo "compiled for sm_80, sm_90 and sm_100: $(notdir $(wildcard csrc/cuda/*.cu))"

build/cuda-compile/%.o: csrc/cuda/%.cu $(wildcard csrc/*.h csrc/cuda/*.h csrc/cuda/*.cuh)
	@test -x "$(NVCC)" || { echo "no nvcc (set CUDA_HOME to a CUDA toolkit)" >&2; exit 1; }
	@mkdir -p $(@D)
	"$(NVCC)" -std=c++17 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC -Icsrc --threads 2 \
	  $(foreach arch,80 90 100,-gencode arch=compute_$(arch),code=sm_$(arch)) -c $< -o $@

gpu-native: $(if $(NAMED_PYTHON),,$(READY))
	FASTRL_BUILD=cuda FASTRL_REQUIRE_NATIVE=1 $(GPU_PYTHON) setup.py --quiet build_ext --inplace

test-gpu: gpu-native
	$(GPU_PYTHON) -m pytest tests -m gpu -q --durations=10

bench-gpu: gpu-native
	$(GPU_PYTHON) benchmarks/gpu.py

clean:
	rm -rf build dist *.egg-info $(VENV) fastrl/*.so fastrl/_build_info.json
