PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

# Processes that tests run in; each computes on one thread.
JOBS ?= auto
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow test-all test-hosts gpu lint format docs bench official notebooks clean

demo: $(SETUP)
	$(BIN)/sam2-keyframe demo --out demo-out

# A few minutes on two cores; property tests try the same examples each time.
test: $(SETUP)
	$(PYTEST)

# The rest: notebooks, random sessions, killed runs, the compiled predictor, training, wheels, the whole demo.
test-slow: $(SETUP)
	$(PYTEST) -m "slow and not gpu"

# All of them; property tests look for examples that nobody has tried.
test-all: $(SETUP)
	SESSIONS=500 HYPOTHESIS_PROFILE=random $(PYTEST) -m "not gpu"

# Hosts that conflict with the main environment, each in one of its own under .hosts/.
test-hosts: $(SETUP)
	tools/test_hosts.sh

# On a machine with a CUDA device: the tests marked gpu, and tables of times with the card's name in benchmarks/results/gpu/.
gpu: $(SETUP)
	$(BIN)/python -m benchmarks.gpu

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site in site/, without network.
docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(SETUP)
	$(BIN)/python -m benchmarks bench --out bench-out

official: $(SETUP)
	$(BIN)/python -m benchmarks official --model "$(MODEL)" --data "$(DATA)" --out bench-out --readme docs/measuring.md

notebooks: $(SETUP)
	PYTHONPATH="$(CURDIR)" $(BIN)/jupyter lab notebooks

# torch first, so that a CPU build that is at hand is taken; SAM 2's video path needs no torchvision, so it is
# installed without its dependencies.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt "setuptools>=77" wheel hydra-core iopath tqdm pillow
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-build-isolation --no-deps sam2==1.1.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all]"
	touch $@

clean:
	rm -rf .venv .hosts demo-out bench-out
