# Both README commands set themselves up: the first run builds .venv, later runs reuse it.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint bench clean

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/metavoxel demo --out demo

# One thread a worker: two that share the cores wait for each other most of the time.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/digits.py
	$(BIN)/python bench/tabular.py
	$(BIN)/python bench/phantom.py ours --model phantom -n 1000
	$(BIN)/python bench/demo.py
	$(BIN)/python bench/tiny.py
	$(BIN)/python bench/tiny.py --paper
	$(BIN)/python bench/dedicated.py
	$(BIN)/python bench/real_brains.py
	$(BIN)/python bench/strip.py
	$(BIN)/python bench/prepare.py speed
	$(BIN)/python bench/prepare.py speed --spacing 1
	$(BIN)/python bench/prepare.py accuracy
	$(BIN)/python bench/index.py
	$(BIN)/python bench/calibration.py
	$(BIN)/python bench/calibration.py -n 4000
	$(BIN)/python bench/surprise.py
	$(BIN)/python bench/changes.py
	$(BIN)/python bench/images.py
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/pictures.py
	$(BIN)/python bench/table.py

clean:
	rm -rf $(VENV) demo
