PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo test test-all lint docs bench official notebooks clean

demo: $(SETUP)
	$(BIN)/sam2-keyframe demo --out demo-out

test: $(SETUP)
	$(BIN)/python -m pytest -q

# The slow ones too: the compiled predictor, training from the command line, a built wheel, the whole demo.
test-all: $(SETUP)
	$(BIN)/python -m pytest -q -m "not gpu"

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The pages of docs/ as a site in site/, without network.
docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(SETUP)
	$(BIN)/python -m benchmarks bench --out bench-out

official: $(SETUP)
	$(BIN)/python -m benchmarks official --model "$(MODEL)" --data "$(DATA)" --out bench-out --readme README.md

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
	rm -rf .venv demo-out bench-out
