# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
MAR := $(VENV)/bin/mar
DEMO := out/demo
EXAMPLE := examples/fashion-mnist

.PHONY: demo test test-slow gpu-check lint docs numbers clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[cpu,openvino,train,evaluate,export,dev,docs]'
	touch $@

demo: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100
	$(MAR) generate $(DEMO)/artifact --count 40 --seed 0 --out $(DEMO)/grid.png
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --plan own --plan fast \
		--json $(DEMO)/bench.json --chart $(DEMO)/bench.png
	$(VENV)/bin/python tests/check_demo.py $(DEMO)

test: lint
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

# The tables of docs/numbers.md, measured again. The study takes hours; stopped, it goes on where it was.
DATA ?= /usr/share/datasets/fashion-mnist
NUMBERS := docs/numbers

numbers: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100
	$(MAR) study $(DEMO)/artifact --checkpoint $(EXAMPLE) --data $(DATA) \
		--out $(NUMBERS)/study --json $(NUMBERS)/study.json --chart $(NUMBERS)/study.png
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --contestant runtime --contestant naive-onnx \
		--contestant eager --contestant eager-optimized --plan own --plan balanced --plan fast --plan turbo \
		--json $(NUMBERS)/example.json --chart $(NUMBERS)/example.png
	$(MAR) bench --preset mar_base --random-weights --plan exact --plan balanced --plan fast --plan turbo \
		--repeats 3 --json $(NUMBERS)/mar_base.json --chart $(NUMBERS)/mar_base.png
	$(VENV)/bin/python -m benchmarks.variants --data $(DATA) --out out/variants --steps 3000 \
		--json $(NUMBERS)/variants.json --chart $(NUMBERS)/variants.png
	$(VENV)/bin/python -m benchmarks.numbers docs/numbers.md $(NUMBERS)

clean:
	rm -rf $(VENV) out build
