#!/usr/bin/env bash
# Clips per second and core of LeRobot's own loader and of ours, on the same files, in one run.
#
#     bash tests/oracles/loader_speed.sh CLIPS [FOLDER [ROUNDS]]     # CLIPS: folder of three MP4 of 320x180, one per camera
#
# Makes, with LeRobot 0.4.4 and its default coding, a dataset of the clips under FOLDER (default /tmp/oracles), converts it to
# the native store, as it is and with --fast, and lets the loaders take turns on one core, 3 rounds. Needs what lerobot.sh
# needs, and 8 GB for a second environment: LeRobot's PyAV backend wants torchvision's VideoReader, which newer ones lack.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
clips=$(cd "$1" && pwd)
base=${2:-/tmp/oracles}
theirs=$base/venv-lerobot pyav=$base/venv-lerobot-pyav ours=$root/.venv/bin
[ -e "$theirs/ready" ] || bash "$here/lerobot.sh" "$base"
if [ ! -e "$pyav/ready" ]; then # the newest that LeRobot 0.4.4 allows; all else as in the first
    python3.11 -m venv "$pyav"
    "$pyav/bin/pip" install -q torch==2.10.0
    "$pyav/bin/pip" install -q --no-deps torchvision==0.25.0 torchcodec==0.10.0
    "$pyav/bin/pip" install -q --no-deps -r <("$theirs/bin/pip" freeze | grep -v "^torch")
    touch "$pyav/ready"
fi
export HF_HUB_OFFLINE=1 HF_HOME=$base/hf OMP_NUM_THREADS=1 SVT_LOG=1
speed=$base/speed
[ -e "$speed/lerobot/meta/info.json" ] || "$theirs/bin/python" "$here/loader_speed_lerobot.py" write "$speed/lerobot" "$clips"
[ -e "$speed/kept/dataset.json" ] || "$ours/wamjax" data convert "$speed/lerobot" "$speed/kept"
[ -e "$speed/fast/dataset.json" ] || "$ours/wamjax" data convert "$speed/lerobot" "$speed/fast" --fast
"$ours/python" "$here/loader_speed.py" "$base" "${3:-3}"
