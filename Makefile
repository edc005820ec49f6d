# Every target sets up what it needs in .venv; nothing outside the checkout is changed, except Debian packages in `system`.
PYTHON ?= python3
VENV := .venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# One release of torch instead of the newest, with any target, in an environment of its own (.venv-torch-2.11.0):
#   make test-torch TORCH=2.11.0 TESTS="tests/ops tests/adapters" PCL_CLORA_ISA=avx2
# TESTS are those that `test-torch` runs (default: all), PCL_CLORA_ISA the instructions that the CPU kernels use.
TORCH :=
TESTS :=
ifneq ($(TORCH),)
VENV := .venv-torch-$(TORCH)
export PIP_CONSTRAINT := $(VENV)/torch.txt
endif
BIN := $(VENV)/bin

.PHONY: demo test test-long faults test-torch lint bench clean venv venv-dev native system

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),echo "torch==$(TORCH)" > $(VENV)/torch.txt)
	touch $@

# the package with its core dependencies: enough to train, evaluate and report
$(VENV)/core: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev: requirements.txt requirements-dev.txt $(VENV)/core
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# the compiled kernels, built against the torch of .venv
NATIVE_SOURCES := $(shell find extensions -type f -not -path '*/build/*' -not -path '*.egg-info/*' -not -name '*.pyc')
$(VENV)/native: $(NATIVE_SOURCES) | $(VENV)/dev
	$(BIN)/python -m pip install --quiet --no-build-isolation ./extensions
	touch $@

venv: $(VENV)/core
venv-dev: $(VENV)/dev
native: $(VENV)/native

# open3d needs libusb, libGL, libgomp and libX11 of the system, the tests of the viewer need a browser; installed where
# apt-get is there and may be used. Without a browser its tests are skipped.
system:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
		! { ldconfig -p | grep -q libusb-1.0 && command -v chromium >/dev/null && command -v chromedriver >/dev/null; }; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends \
			libusb-1.0-0 libgl1 libgomp1 libx11-6 chromium chromium-driver fonts-dejavu-core; fi

demo: venv
	$(BIN)/pcl-clora demo

lint: venv-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: system lint native
	$(BIN)/python -m pytest -n 2

# what `make test` leaves out because it is long: the full sizes, compilers of native code
test-long: system native
	$(BIN)/python -m pytest -n 2 -m long

# breaks files of every kind for SECONDS and prints what came out; what did harm goes to the folder faults
faults: venv-dev
	$(BIN)/python -m tests.support.faults --seconds $(or $(SECONDS),600) --seed $(or $(SEED),0)

test-torch: system native
	@$(BIN)/python -c 'from torch import __version__; print("torch", __version__)'
	$(BIN)/python -m pytest -n 2 $(TESTS)

# renews the results and the pages that show them
bench: system venv-dev native
	$(BIN)/python -m pip install --quiet -r requirements-bench.txt
	$(BIN)/pcl-clora bench ops --out results/bench/ops.json
	$(BIN)/pcl-clora bench show results/bench/ops.json --into docs/ops.md
	$(BIN)/pcl-clora bench ops --isa avx2 --threads 1 --out results/bench/ops_avx2.json
	$(BIN)/pcl-clora bench show results/bench/ops_avx2.json --into docs/ops.md
	$(BIN)/pcl-clora bench model --out results/bench/model.json
	$(BIN)/pcl-clora bench show results/bench/model.json --into docs/performance.md
	$(BIN)/pcl-clora bench model --isa avx2 --threads 1 --out results/bench/model_avx2.json
	$(BIN)/pcl-clora bench show results/bench/model_avx2.json --into docs/performance.md
	$(BIN)/pcl-clora report cost --config cfgs/scanobjectnn/hardest_clora.yaml

clean:
	rm -rf $(VENV) .venv-torch-* build dist *.egg-info extensions/build extensions/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
