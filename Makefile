# Every command sets up .venv first, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CODE := src tests $(wildcard examples benchmarks)

.DEFAULT_GOAL := help
.PHONY: help demo test check docs clean

help:
	@echo "make demo    teach a small network on bundled data and compress it, in minutes"
	@echo "make test    run the tests"
	@echo "make check   format, lint and types"
	@echo "make docs    build the pages in build/site"
	@echo "make clean   remove what the above made, the environment included"

# These come alone: torchvision would bring a torch of its own, the others much that tests do not need.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test,dev,docs,export,report,ray,postgresql,tensorboard]' --constraint constraints.txt
	$(BIN)/pip install --quiet --no-deps torchvision timm --constraint constraints.txt
	$(BIN)/pip install --quiet --no-deps transformers huggingface_hub tokenizers regex httpx httpcore anyio h11 sniffio \
		--constraint constraints.txt
	touch $@

demo: $(READY)
	$(BIN)/understudy teach zoo:resnet20 --data digits --out teachers/demo --augmentation.crop 1 --device.threads 1
	$(BIN)/understudy compress teachers/demo --data digits --params 10x --score-drop 0.02 --run runs/demo \
		--augmentation.crop 1 --n2n.shrinkage-updates 14 --device.workers 2

test: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

# Material for MkDocs says at each start that its support ends in May 2027; docs/design.md says what follows it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
