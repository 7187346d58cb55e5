#!/usr/bin/env bash
# Sets this machine up and trains on it, alone or as one of the machines of a cluster, which all run this same command.
#
#   bash launch/train.sh [--extra tpu|cuda] [--dry-run] --config FILE --data DIR --out DIR [more of `wamjax train`]
#
# TPU pods, GKE and SLURM are detected; elsewhere give each process --coordinator, --processes and --process.
# A run that was interrupted goes on with the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

extra=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage launch/train.sh ;;
    --dry-run) dry=yes ;;
    --extra) extra=(--extra "${2:?"error: --extra needs tpu or cuda"}"); shift ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "say what to train: --config FILE --data DIR --out DIR (see bash launch/train.sh --help)"

export PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
run bash launch/setup.sh ${extra[@]+"${extra[@]}"}
run .venv/bin/wamjax train "$@"
