# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
MAR := $(VENV)/bin/mar
DEMO := out/demo
EXAMPLE := examples/fashion-mnist

.PHONY: demo test lint clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[cpu,train,export,dev]'
	touch $@

demo: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100
	$(MAR) generate $(DEMO)/artifact --count 40 --seed 0 --out $(DEMO)/grid.png
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --json $(DEMO)/bench.json
	$(VENV)/bin/python tests/check_demo.py $(DEMO)

test: lint
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) out build
