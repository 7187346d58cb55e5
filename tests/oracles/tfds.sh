#!/usr/bin/env bash
# TensorFlow Datasets on the CPU, and a dataset of DROID's schema written with it in both file formats.
#
#     bash tests/oracles/tfds.sh [FOLDER]         # default /tmp/oracles; makes FOLDER/{tfrecord,array_record}
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
base=${1:-/tmp/oracles}
venv=$base/venv-tfds
if [ ! -e "$venv/ready" ]; then
    python3.11 -m venv "$venv"
    "$venv/bin/pip" install -q tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10
    touch "$venv/ready"
fi
export TF_CPP_MIN_LOG_LEVEL=3
"$venv/bin/python" "$here/tfds_recipe.py" "$base"
