# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
MAR := $(VENV)/bin/mar
DEMO := out/demo
EXAMPLE := examples/fashion-mnist

.PHONY: demo test test-slow gpu-check lint docs benchmarks benchmark-pages clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[cpu,openvino,train,evaluate,export,dev,docs]'
	touch $@

demo: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100
	$(MAR) generate $(DEMO)/artifact --count 40 --seed 0 --out $(DEMO)/grid.png
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --preset own --preset fast \
		--json $(DEMO)/bench.json --chart $(DEMO)/bench.png
	$(VENV)/bin/python tests/check_demo.py $(DEMO)

test: lint docs
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --max-worker-restart 0

# MAR-L and MAR-H at full size: 12 GB of memory, 10 GB of disk.
test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow

# On a machine with an NVIDIA GPU, with whatever is installed there: what is right, and how fast.
gpu-check:
	$(or $(wildcard $(VENV)/bin/python),python3) -m benchmarks.gpu_check --out out/gpu

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# The site, in out/site. A warning, such as a broken link, is an error.
docs: $(VENV)/installed
	$(VENV)/bin/mkdocs build --strict --quiet --site-dir out/site

# Measures the figures of docs/benchmarks again and renders their tables. The study takes hours; if it is stopped, the
# same command resumes it.
DATA ?= /usr/share/datasets/fashion-mnist
FIGURES := docs/benchmarks/data

benchmarks: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100
	$(MAR) study $(DEMO)/artifact --checkpoint $(EXAMPLE) --data $(DATA) \
		--out $(FIGURES)/study --json $(FIGURES)/study.json --chart $(FIGURES)/study.png
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --runner runtime --runner naive-onnx --runner eager \
		--runner eager-optimized --preset own --preset balanced --preset fast --preset turbo \
		--json $(FIGURES)/example.json --chart $(FIGURES)/example.png
	$(MAR) bench --model mar_base --random-weights --preset exact --preset balanced --preset fast --preset turbo \
		--repeats 3 --json $(FIGURES)/mar_base.json --chart $(FIGURES)/mar_base.png
	$(VENV)/bin/python -m benchmarks.variants --data $(DATA) --out out/variants --steps 3000 \
		--json $(FIGURES)/variants.json --chart $(FIGURES)/variants.png
	$(MAKE) benchmark-pages

# The tables of docs/benchmarks, rendered from the figures that are there.
benchmark-pages: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.render_pages $(FIGURES) docs/benchmarks/*.md docs/benchmarks/history/*.md

clean:
	rm -rf $(VENV) out build
