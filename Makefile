# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
MAR := $(VENV)/bin/mar
DEMO := out/demo
EXAMPLE := examples/fashion-mnist
GAMES := examples/procgen

.PHONY: demo test browser test-slow fuzz kill locked lock wheel audit gpu-check lint docs benchmarks benchmark-pages compatibility clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[cpu,openvino,ray,serve,prompt,train,evaluate,fid,export,text,dev,docs,release]'
	touch $@

# The same from files whose hashes are known. torch must be that of PyTorch's index of CPU builds: that of
# PyPI needs CUDA libraries, which are not pinned.
locked:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(VENV)/installed

# Writes requirements.txt: the versions of constraints.txt with the hashes of all their files on PyPI, but of torch
# the CPU build that pip finds here.
lock: $(VENV)/installed
	$(VENV)/bin/uv pip compile constraints.txt --universal --no-deps --generate-hashes --no-annotate --no-header \
		--system-certs --no-python-downloads --quiet --python-version 3.11.5 --output-file requirements.txt
	rm -rf out/torch
	$(VENV)/bin/pip download torch --quiet --no-deps --constraint constraints.txt --dest out/torch
	sed -i '/^torch==/,/[^\\]$$/d' requirements.txt
	printf 'torch==%s \\\n    %s\n' "$$(basename out/torch/torch-*.whl | cut -d- -f2)" \
		"$$($(VENV)/bin/pip hash out/torch/torch-*.whl | tail -1)" >> requirements.txt

demo: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100 --force
	$(MAR) generate $(DEMO)/artifact --count 40 --seed 0 --out $(DEMO)/grid.png --force
	$(MAR) export $(GAMES) --out $(DEMO)/games --cfg-scale 2.0 --force
	$(MAR) generate $(DEMO)/games --count 64 --seed 0 --preset fast --out $(DEMO)/games.png --force
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --preset own --preset fast --repeats 3 \
		--report $(DEMO)/bench.json --chart $(DEMO)/bench.png --force
	$(VENV)/bin/python tests/check_demo.py $(DEMO)

APT_INSTALL := apt-get install --yes --quiet=2 chromium chromium-driver

# The browser for tests of the page: Debian's Chromium, with its driver.
browser:
	@command -v chromedriver > /dev/null || $(APT_INSTALL) > /dev/null || { apt-get update --quiet=2 && $(APT_INSTALL) > /dev/null; } || \
		{ echo "the tests of the page need chromium and chromedriver; install them, or run make as root on Debian"; exit 1; }

# Triton Inference Server, for tests of exported repositories, in an environment of its own: the backend of this version
# misreads the arrays of numpy 2.
$(VENV)/triton: $(VENV)/installed
	rm -rf $@ && $(PYTHON) -m venv --without-pip $@
	grep -v '^numpy==' constraints.txt > $@/constraints.txt
	$(VENV)/bin/python -m pip --python $@/bin/python install --quiet --disable-pip-version-check \
		--constraint $@/constraints.txt numpy==1.26.4 pillow click onnxruntime
	$(VENV)/bin/python -m pip --python $@/bin/python install --quiet --disable-pip-version-check --no-deps \
		nvidia-pytriton==0.7.0
	$@/bin/python -c 'import site, pathlib; pathlib.Path(site.getsitepackages()[0], "mar.pth").write_text("$(CURDIR)")'

# The oldest safetensors that pyproject.toml allows, for a test of the files that it writes.
out/oldest/safetensors: $(VENV)/installed
	rm -rf $@ && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ safetensors==0.4.5

# First what checks and what downloads, side by side: half of it waits for a network.
test: $(VENV)/installed
	$(MAKE) --jobs=2 --output-sync=target lint docs browser $(VENV)/triton out/oldest/safetensors
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 40

# MAR-L and MAR-H at full size: 12 GB of memory, 10 GB of disk.
test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow

# N damaged inputs of every surface, from the seed on.
N ?= 1000
SEED ?= 0
fuzz: $(VENV)/installed
	$(VENV)/bin/python -m tests.fuzz $(N) $(SEED)

# N kills, each before a change of a file that a command makes; the command given again must end as an undisturbed one.
kill: N = 300
kill: $(VENV)/installed
	$(VENV)/bin/python -m tests.fuzz.kills $(N) $(SEED)

# The wheel, and beside it the list of its dependencies (CycloneDX).
wheel: $(VENV)/installed
	rm -rf out/dist
	$(VENV)/bin/python -m build --wheel --outdir out/dist
	for wheel in out/dist/*.whl; do $(VENV)/bin/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml \
		--output-reproducible --output-format JSON --output-file "$${wheel%.whl}.cdx.json"; done

# Known vulnerabilities of the pinned versions. It asks PyPI, and so needs a network.
audit: $(VENV)/installed
	$(VENV)/bin/uv tool run pip-audit --disable-pip --no-deps --requirement requirements.txt

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
	$(VENV)/bin/mkdocs build --strict --site-dir out/site

# Measures the figures of docs/benchmarks again and renders their tables. The study takes hours; if it is stopped, the
# same command resumes it.
DATA ?= /usr/share/datasets/fashion-mnist
FIGURES := docs/benchmarks/data

benchmarks: $(VENV)/installed
	$(MAR) export $(EXAMPLE) --out $(DEMO)/artifact --cfg-scale 2.0 --diffusion-steps ddim100 --force
	$(MAR) study $(DEMO)/artifact --data $(DATA) \
		--out out/study --report $(FIGURES)/study.json --chart $(FIGURES)/study.png --force
	$(MAR) bench $(DEMO)/artifact --checkpoint $(EXAMPLE) --runner runtime --runner naive-onnx --runner eager \
		--runner eager-optimized --preset own --preset balanced --preset fast --preset turbo \
		--report $(FIGURES)/example.json --chart $(FIGURES)/example.png --force
	$(MAR) bench --model mar_base --random-weights --preset exact --preset balanced --preset fast --preset turbo \
		--repeats 3 --report $(FIGURES)/mar_base.json --chart $(FIGURES)/mar_base.png --force
	$(VENV)/bin/python -m benchmarks.variants --data $(DATA) --out out/variants --steps 3000 \
		--report $(FIGURES)/variants.json --chart $(FIGURES)/variants.png
	$(VENV)/bin/python -m benchmarks.serving $(DEMO)/artifact --report $(FIGURES)/serving.json
	$(MAKE) benchmark-pages

# The tables of docs/benchmarks, rendered from the figures that are there, and those of docs/compatibility.md.
benchmark-pages: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.render_pages $(FIGURES) docs/benchmarks/*.md docs/benchmarks/history/*.md
	$(VENV)/bin/python -m benchmarks.render_pages runtime docs/compatibility.md

# What the libraries make of exported graphs. TensorRT-RTX compiles for minutes; other parts take seconds.
compatibility: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.compatibility engines operators tensorrt-rtx
	$(MAKE) benchmark-pages

clean:
	rm -rf $(VENV) out build
