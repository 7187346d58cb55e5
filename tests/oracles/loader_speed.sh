#!/usr/bin/env bash
# Clips per second and core of LeRobot's own loader and of ours, on the same files, in one run.
#
#     bash tests/oracles/loader_speed.sh CLIPS [FOLDER]     # CLIPS: folder of three MP4 of 320x180, one per camera
#
# Makes, with LeRobot 0.4.4 and its default coding, a dataset of the clips under FOLDER (default /tmp/oracles), converts it to
# the native store, as it is and with --fast, and lets both loaders take turns on one core. Needs what lerobot.sh needs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
clips=$(cd "$1" && pwd)
base=${2:-/tmp/oracles}
theirs=$base/venv-lerobot/bin/python ours=$root/.venv/bin
[ -e "$base/venv-lerobot/ready" ] || bash "$here/lerobot.sh" "$base"
export HF_HUB_OFFLINE=1 HF_HOME=$base/hf OMP_NUM_THREADS=1 SVT_LOG=1
speed=$base/speed
[ -e "$speed/lerobot/meta/info.json" ] || "$theirs" "$here/loader_speed_lerobot.py" write "$speed/lerobot" "$clips"
[ -e "$speed/kept/dataset.json" ] || "$ours/wamjax" data convert "$speed/lerobot" "$speed/kept"
[ -e "$speed/fast/dataset.json" ] || "$ours/wamjax" data convert "$speed/lerobot" "$speed/fast" --fast
"$ours/python" "$here/loader_speed.py" "$theirs" "$speed"
