#!/usr/bin/env bash
# PyTorch 2.13.0. Seen on 2026-12-01, x86-64, CPU, GCC's OpenMP.
#
# Guess: a package of AOTInductor runs with the threads of the process that loads it: torch.set_num_threads(1), or
#   OMP_NUM_THREADS=1, makes it run in one. So a package can be compiled on a large machine for a small one.
# Seen: it runs with the number of threads of the process that compiled it, 4 here, in spite of both. The generated C++ has
#   `#pragma omp parallel num_threads(4)`. Only OMP_THREAD_LIMIT=1 holds it to one thread.
#
# Exits with 0 if this is seen again, with 1 if something else is. Needs a C++ compiler.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$work/packages" \
    torch==2.13.0 numpy==2.4.6 sympy==1.14.0 mpmath==1.3.0 networkx==3.6.1 jinja2==3.1.6 MarkupSafe==3.0.4 \
    fsspec==2026.9.0 filelock==4.2.11 typing_extensions==4.16.0 setuptools==84.2.1
cd "$work"
export PYTHONPATH=packages TORCHINDUCTOR_CACHE_DIR="$work/cache" PYTHONWARNINGS=ignore
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
python3 - << 'PYTHON'
import torch


class Product(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x) * torch.exp(-x * x)


torch.set_num_threads(4)
exported = torch.export.export(Product(), (torch.zeros(2048, 2048),))
torch._inductor.aoti_compile_and_package(exported, package_path="product.pt2")
PYTHON
cat > run.py << 'PYTHON'
import os

import torch

torch.set_num_threads(1)
package = torch._inductor.aoti_load_package("product.pt2")
before = len(os.listdir("/proc/self/task"))
package(torch.ones(2048, 2048))
print(len(os.listdir("/proc/self/task")) - before)
PYTHON
started="$(python3 run.py) $(OMP_NUM_THREADS=1 python3 run.py) $(OMP_THREAD_LIMIT=1 python3 run.py)"
echo "threads started by a call: $started (set_num_threads(1), OMP_NUM_THREADS=1 too, OMP_THREAD_LIMIT=1 too)"
[ "$started" = "3 3 0" ] || { echo "changed"; exit 1; }
