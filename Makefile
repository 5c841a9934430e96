# `make train` and `make test` are all a newcomer needs; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits
# AutoAttack sees this many of the 360 test images in `make train`: two thirds of the command's time as it is.
AA_SAMPLES ?= 200
UV_VERSION := 0.13.9
BIN := $(VENV)/bin
SOURCES := engine kernels loaders bench
# Second implementations that tests compare with, installed without what they ask for and no test uses: torchattacks
# pins a requests of 2021, adv-lib wants visdom to plot with, timm the client of a hub to download from.
TEST_ONLY := adv-lib timm torchattacks
# What FFCV is compiled with; opencv-python, which it imports, needs the libGL that comes with these.
LIBRARIES := libopencv-dev libturbojpeg0-dev pkg-config g++ python3-dev
HAVE_LIBRARIES := pkg-config --exists opencv4 libturbojpeg 2>/dev/null
HAVE_FFCV := ls $(VENV)/lib/python3*/site-packages/ffcv/__init__.py >/dev/null 2>&1
APT := DEBIAN_FRONTEND=noninteractive apt-get
# `$(call apt,PACKAGES)` succeeds where they can be installed.
apt = { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing Debian's $(1)" && \
  ($(APT) install -qq -y --no-install-recommends $(1) || \
  { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends $(1); }) >/dev/null 2>&1; }
# What the campaigns of a night found, a line each.
FIGURES := runs/night.jsonl
# The source tree as the import package `hardfast`, for machines on which nothing is installed.
TREE := .tree
# Two test processes of one thread each are twice as fast as one of two, and do not slow down on a busy machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --benchmark-disable

.NOTPARALLEL: # the system libraries come before what is built against them

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

$(VENV)/installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hardfast needs Python 3.11 or newer and $(PYTHON) is not: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments: install Debian's python3-venv, or make PYTHON=..."; exit 2; }
	@echo "installing into $(VENV): torch and its CUDA libraries are 5 GB"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt setuptools \
	  --editable '.[eval,test,dali]'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --no-deps $(TEST_ONLY)
	@$(HAVE_LIBRARIES) || echo "without FFCV, which is compiled with OpenCV and libturbojpeg: 'make system install' as" \
	  "root, or Debian's $(LIBRARIES) and then 'make install'"
	@touch $@

.PHONY: install
install: $(VENV)/installed ## a virtual environment in .venv with the tested versions
	@$(HAVE_FFCV) || ! $(HAVE_LIBRARIES) || $(BIN)/uv pip install --quiet --python $(BIN)/python \
	  --constraints constraints.txt --build-constraints constraints.txt ffcv || \
	  { echo "FFCV could not be compiled, everything else is installed; it needs Debian's $(LIBRARIES)"; }

.PHONY: train
train: install ## FGSM-SDI on the digits, then clean, PGD-20 and AutoAttack accuracy: the whole job in minutes
	@$(BIN)/hardfast train digits --out $(RUN) --no-evaluate
	@$(BIN)/hardfast evaluate $(RUN) --attacks clean pgd-20 aa --aa-samples $(AA_SAMPLES)

.PHONY: test
test: system check ## checks, then every test that takes seconds
	$(PYTEST) -m "not slow and not gpu"

.PHONY: test-night
test-night: system check ## every test that runs without a GPU, as often as tests/README.md's figures ask (an hour); TESTS=... some
	@mkdir -p runs && rm -f $(FIGURES)
	HARDFAST_NIGHT=1 HARDFAST_EXAMPLES=10000 HARDFAST_FIGURES=$(abspath $(FIGURES)) \
	  $(PYTEST) -m "not gpu" --durations=30 $(TESTS) && \
	  $(BIN)/python -m tests.night $(FIGURES) make test-night $(if $(TESTS),TESTS=\"$(TESTS)\")

.PHONY: test-gpu
test-gpu: install ## the tests that need a CUDA device
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu

.PHONY: gpu
gpu: tree ## GPU tests and benchmarks where nothing is installed but torch: PARTS="tests step", all by default
	@PYTHONPATH=$(CURDIR)/$(TREE) $(or $(wildcard $(BIN)/python),$(PYTHON)) \
	  -m hardfast.bench.gpu --parts $(PARTS) $(GPU_OPTIONS)

.PHONY: tree
tree: ## the source tree as the package hardfast: PYTHONPATH=.tree python3 -m hardfast.bench.gpu --help
	@mkdir -p $(TREE)/hardfast
	@ln -sfn $(addprefix ../../,$(SOURCES)) $(TREE)/hardfast

.PHONY: mutants
mutants: install ## plants defects in the kernels, one after the other, and counts those that the tests find (an hour)
	@mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.run --out runs/mutants.md

.PHONY: check
check: install ## ruff, its formatting, and the types of the package as it is installed
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@rm -rf build $(VENV)/typecheck
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VENV)/typecheck --no-deps --no-build-isolation .
	@root=$$PWD; mypy=$$(realpath $(BIN))/mypy; cd $(VENV)/typecheck && $$mypy --config-file $$root/pyproject.toml \
	  --cache-dir $$root/.mypy_cache $(addprefix -p hardfast.,$(SOURCES))
	@rm -rf build *.egg-info

.PHONY: system
system: ## Debian's packages, where they may be installed: FFCV's libraries, Fashion-MNIST as published (for tests)
	@$(HAVE_LIBRARIES) || $(call apt,$(LIBRARIES)) || \
	  echo "FFCV's libraries are not here and cannot be installed: no FFCV (Debian: $(LIBRARIES))"
	@test -d /usr/share/datasets/fashion-mnist || $(call apt,dataset-fashion-mnist) || \
	  echo "Fashion-MNIST is not here and cannot be installed: its tests are skipped (Debian: dataset-fashion-mnist)"

.PHONY: bench
bench: install ## the table of README: methods, seeds, AutoAttack and step times on the digits (about 20 minutes)
	$(BIN)/hardfast bench methods digits --out runs/methods --aa-samples $(AA_SAMPLES) \
	  --csv bench/results/digits_methods.csv

.PHONY: bench-cpu
bench-cpu: install ## times the kernels' CPU implementations; fails where one is 30% slower than when this ran here last
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bench/test_cpu_speed.py --benchmark-only --benchmark-autosave \
	  --benchmark-columns=min,median,iqr \
	  $(if $(wildcard .benchmarks/*/*.json),--benchmark-compare --benchmark-compare-fail=min:30%)

.PHONY: clean
clean: ## removes what was installed and built, and no run
	rm -rf $(VENV) build $(TREE) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
