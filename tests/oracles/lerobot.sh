#!/usr/bin/env bash
# LeRobot 0.4.4 (v3.0) and 0.3.3 (v2.1) on the CPU, and the datasets of lerobot_recipe.py written with them.
#
#     bash tests/oracles/lerobot.sh [FOLDER]         # default /tmp/oracles; makes FOLDER/lerobot{21,30,_converted}
#     bash tests/oracles/lerobot.sh FOLDER read DATASET OUT.npz     # what LeRobot itself returns for a v3.0 dataset
#
# Needs Python 3.11 and the libraries of FFmpeg 4 to 8 (apt-get install ffmpeg).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
base=${1:-/tmp/oracles}
venv=$base/venv-lerobot
if [ ! -e "$venv/ready" ]; then
    python3.11 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0
    "$venv/bin/pip" install -q --no-deps torchvision==0.28.0 lerobot==0.4.4 torchcodec==0.13.0
    "$venv/bin/pip" install -q "numpy<2.3" "av<16" "datasets<5" huggingface-hub==0.35.3 jsonlines deepdiff \
        draccus==0.10.0 einops "opencv-python-headless<4.13" "imageio[ffmpeg]" gymnasium termcolor safetensors packaging
    "$venv/bin/pip" install -q --no-deps accelerate
    "$venv/bin/pip" install -q --no-deps --target "$base/lerobot033" lerobot==0.3.3 datasets==3.6.0
    touch "$venv/ready"
fi
export HF_HUB_OFFLINE=1 HF_HOME=$base/hf
if [ "${2:-}" = read ]; then
    "$venv/bin/python" "$here/lerobot_recipe.py" read "$3" "$4"
else
    PYTHONPATH=$base/lerobot033 "$venv/bin/python" "$here/lerobot_recipe.py" write21 "$base/lerobot21"
    "$venv/bin/python" "$here/lerobot_recipe.py" write30 "$base/lerobot30"
    "$venv/bin/python" "$here/lerobot_recipe.py" convert "$base/lerobot_converted" "$base/lerobot21"
fi
