# Everything a developer types; CI runs the same targets. `make` alone lists them.

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := trainer,server,pretrained,cpu,dicom,demo,triton,otel
TRITON_PYTHON ?= /usr/bin/python3.11
TORCH := $(shell sed -n 's/^torch==//p' constraints/cpu.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-triton test-protobuf7 conformance fuzz soak lint format docs protos contract bench bench-engines bench-quality bench-scale bench-decode bench-serving wheel clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12   the Python to set up with (3.11 to 3.13)'
	@echo '  TORCH_INDEX=URL     install torch from this index, such as https://download.pytorch.org/whl/cpu'
	@echo '  ARGS="..."          more arguments for pytest, the demo or the benchmark'

setup: $(VENV)/.setup ## Install everything into .venv, where it is not yet

demo: setup ## Set up, and do the main job on real images: prepare, train, serve, categorize
	$(VENV)/bin/deepmcat demo $(ARGS)

test: setup ## Set up, and run the fast tests
	$(PY) -m pytest -m 'not slow' $(ARGS)

test-slow: setup ## Run the tests that take more than ten seconds each
	$(PY) -m pytest -m slow $(ARGS)

test-triton: setup .venv-triton/.setup ## Test exported model repositories with a real tritonserver, where there is Debian's or Ubuntu's Python 3.11
	$(PY) -m pytest -m slow tests/trainer/test_export.py $(ARGS)

# The tests of the wire contract, in an environment that has only a client's packages and protobuf 7.
test-protobuf7: .venv-protobuf7/.setup ## Check that the generated code and the client work with protobuf 7 too
	.venv-protobuf7/bin/python -m pytest -c /dev/null --rootdir . --noconftest -q -p no:cacheprovider tests/test_protos.py

conformance: setup ## Compare what comes of every file of the DICOM corpora with the golden table; ARGS=--update: record it
	$(PY) -m tests.conformance $(ARGS)

fuzz: setup ## Look for bytes that break a promise of decoding, two minutes long; ARGS="--seconds 600": ten
	$(PY) -m pip install --quiet -c constraints/cpu.txt --group fuzz || echo 'without atheris, half of it runs' >&2
	$(PY) -m tests.fuzz $(ARGS)

soak: setup ## Half an hour of everything at once, faults included: two servers, callers of all kinds; ARGS="--minutes 2": two
	OMP_NUM_THREADS=1 $(PY) -m tests.soak $(ARGS)

lint: setup ## Check style, types, imports, the wire contract, and that generated code is fresh
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/buf lint
	$(VENV)/bin/buf breaking --against protos/deepmcat.v1.binpb
	$(PY) protos/generate.py --check

format: setup ## Format the code and mend what can be mended
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: setup ## Write the tables of docs/conformance.md again
	$(PY) docs/tables.py

protos: setup ## Generate the Python code of the wire contract again
	$(PY) protos/generate.py

contract: setup ## At a release: record the wire contract as the one that must not be broken
	$(VENV)/bin/buf build -o protos/deepmcat.v1.binpb

bench: setup ## Run the benchmark on the image sets of $DEEPMCAT_DATA
	$(PY) -m benchmarks $(ARGS)

bench-quality: setup ## Measure what is missing of quality on the image sets of $DEEPMCAT_DATA; ARGS=--quick: minutes
	$(PY) -m benchmarks.quality $(ARGS)

bench-scale: setup ## Measure time and memory against the number of images; ARGS=--quick: a minute, ARGS=--estimate: how long
	$(PY) benchmarks/scale.py $(ARGS)

bench-decode: setup .venv-bench/.setup ## Measure decoding beside pydicom with pillow, pylibjpeg and gdcm; ARGS=--quick: a minute, ARGS=--page: write docs/decoding.md
	OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/decode.py $(ARGS)

bench-engines: setup ## Measure what may run an encoder on a CPU: ONNX Runtime, torch, OpenVINO
	$(PY) -m pip install --quiet --group engines || echo 'without OpenVINO' >&2
	$(PY) -m benchmarks.engines $(ARGS)

bench-serving: setup ## Measure serving beside Triton, MLServer and Ray Serve; ARGS=--quick: minutes, ARGS=--page: write docs/serving.md
	$(if $(findstring --page,$(ARGS)),,$(MAKE) --keep-going .venv-triton/.setup .venv-mlserver/.setup .venv-ray/.setup || echo 'what is missing is left out' >&2)
	$(PY) -m benchmarks.serving $(ARGS)

wheel: setup ## Build the wheel into dist/
	$(PY) -m pip wheel --no-deps --wheel-dir dist .

clean: ## Remove the environments, what was built, and what tools keep; images and artifacts stay
	rm -rf .venv .venv-bench .venv-mlserver .venv-protobuf7 .venv-ray .venv-triton build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A missing prerequisite gets a sentence instead of a traceback. No network is probed.
define check_python
command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here: apt install python3 python3-venv, or name another: make setup PYTHON=python3.12" >&2; exit 2; }; \
$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "$$($(PYTHON) --version) is not one that DeepMCAT runs on (3.11 to 3.13): apt install python3.12 python3.12-venv, then make setup PYTHON=python3.12" >&2; exit 2; }; \
$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') (or python3-venv)" >&2; exit 2; }
endef

# The stamp is written last, so a set-up that broke off is done again.
$(VENV)/.setup: pyproject.toml constraints/cpu.txt
	@test -x $(VENV)/bin/pip || { $(check_python); $(PYTHON) -m venv $(VENV); }
	$(PY) -m pip install --upgrade -c constraints/cpu.txt pip
ifneq ($(TORCH_INDEX),)
	$(PY) -m pip install --no-deps --index-url $(TORCH_INDEX) torch==$(TORCH)
endif
	$(PY) -m pip install -c constraints/cpu.txt -e '.[$(EXTRAS)]' --group dev
	@touch $@

.venv-protobuf7/.setup: pyproject.toml constraints/cpu.txt
	@test -x .venv-protobuf7/bin/pip || { $(check_python); $(PYTHON) -m venv .venv-protobuf7; }
	grep -v '^protobuf==' constraints/cpu.txt > .venv-protobuf7/constraints.txt
	.venv-protobuf7/bin/python -m pip install -c .venv-protobuf7/constraints.txt -e . 'protobuf==7.*' pytest
	@touch $@

# nvidia-pytriton brings tritonserver with its Python backend alone. That needs libpython3.11.so, which a Python built
# by oneself has not.
.venv-triton/.setup:
	$(TRITON_PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install nvidia-pytriton==0.7.0 onnxruntime
	@touch $@

# What serving is compared with. Their pins clash with ours and with each other's.
.venv-mlserver/.setup: | $(VENV)/.setup
	$(PY) -m venv .venv-mlserver
	.venv-mlserver/bin/pip install mlserver==1.7.1 onnxruntime 'uvloop<0.22'
	@touch $@

.venv-ray/.setup: | $(VENV)/.setup
	$(PY) -m venv .venv-ray
	.venv-ray/bin/pip install 'ray[serve]==2.60.0' 'tritonclient[grpc]' 'grpcio-reflection<1.83' 'grpcio-health-checking<1.83'
	@touch $@

# What $(VENV) has, and decoders to compare with: one of them is under the GPL, so they are installed nowhere else. One that
# cannot be installed is named by the benchmark.
.venv-bench/.setup: $(VENV)/.setup
	$(PY) -m venv .venv-bench
	$(PY) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > "$$(.venv-bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/deepmcat.pth"
	for peer in "pylibjpeg pylibjpeg-libjpeg pylibjpeg-rle" python-gdcm; do .venv-bench/bin/pip install $$peer || true; done
	@touch $@
