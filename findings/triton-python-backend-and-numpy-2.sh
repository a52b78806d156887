#!/usr/bin/env bash
# Triton Inference Server 2.51.0 (from nvidia-pytriton 0.7.0), Python backend, numpy 2.4.6. Seen on 2026-11-29, x86-64, CPU.
#
# Guess: the Python backend takes numpy from the environment, and any version of numpy will do: it imports, the model
#   loads, the server says that it is ready, and numbers in requests arrive as they are.
# Seen: an output array of 4 bytes is taken as one of another size. The request fails with
#   "output tensor shape does not match size of output for 'Y'", which names neither numpy nor the model's code. The
#   backend was built for numpy 1. With numpy 1.26.4, and nothing else changed, the answer is [0, 1, 2, 3].
#
# Exits with 0 if both are seen again, with 1 if something else is.
set -euo pipefail
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2> /dev/null || true; rm -rf "$work"' EXIT
repository=$work/models
mkdir -p "$repository/m/1"
cat > "$repository/m/config.pbtxt" <<'CONFIG'
name: "m"
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_UINT8 dims: [ 4 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
CONFIG
cat > "$repository/m/1/model.py" <<'MODEL'
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        return [triton.InferenceResponse([triton.Tensor("Y", np.arange(4, dtype=np.uint8)[None])]) for _ in requests]
MODEL

answer() { # VERSION PORT: the answer of a server whose environment has this numpy
    local venv=$work/numpy-$1 packages python
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "numpy==$1" 2> "$work/pip.log"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0 2>> "$work/pip.log"
    packages=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    python=$("$venv/bin/python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
    mkdir "$venv/backends"
    cp -r "$packages/pytriton/tritonserver/backends/python" "$venv/backends/"
    cp "$packages/pytriton/tritonserver/python_backend_stubs/$python/triton_python_backend_stub" "$venv/backends/python/"
    PATH=$venv/bin:$PATH LD_LIBRARY_PATH=$packages/nvidia_pytriton.libs \
        "$packages/pytriton/tritonserver/bin/tritonserver" --model-repository="$repository" \
        --backend-directory="$venv/backends" --http-address=127.0.0.1 --http-port="$2" \
        --allow-grpc=false --allow-metrics=false > "$venv/log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        curl --silent --fail "http://127.0.0.1:$2/v2/health/ready" && break
        sleep 0.1
    done
    curl --silent --data '{"inputs": [{"name": "X", "datatype": "INT32", "shape": [1, 1], "data": [7]}]}' \
        "http://127.0.0.1:$2/v2/models/m/infer" > "$work/answer"
    kill "$server" && wait "$server" || true
    server=
}

answer 2.4.6 18471
new=$(cat "$work/answer")
answer 1.26.4 18472
old=$(cat "$work/answer")
echo "numpy 2.4.6:  $new"
echo "numpy 1.26.4: $old"
case $new in *"output tensor shape does not match size of output"*) ;; *) echo "changed: numpy 2"; exit 1 ;; esac
case $old in *'"data":[0,1,2,3]'*) ;; *) echo "changed: numpy 1"; exit 1 ;; esac
