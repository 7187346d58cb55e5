#!/usr/bin/env bash
# The main job, from a fresh clone to a robot policy that imagines and acts: collect episodes, train, evaluate, report.
#
#   bash launch/demo.sh             joint prediction and representation-only, beside a random policy and the expert
#   bash launch/demo.sh --full      then also action-only, blind and inverse dynamics, and swapped images
#   bash launch/demo.sh --quick     one small joint policy
#   --out DIR                       where results go (runs/demo; runs/quick for --quick)
#
# Every stage skips or resumes finished work, so an interrupted run goes on with the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=demo
out=''
while [ $# -gt 0 ]; do
  case $1 in
    --quick) mode=quick ;;
    --full) mode=full ;;
    --out) out=${2:?"error: --out needs a folder"}; shift ;;
    -h | --help) sed -n 's/^# \{0,1\}//p' launch/demo.sh | sed -n 2,9p; exit 0 ;;
    *) printf 'error: unknown option %s (see bash launch/demo.sh --help)\n' "$1" >&2; exit 2 ;;
  esac
  shift
done
if [ "$mode" = quick ]; then out=${out:-runs/quick}; else out=${out:-runs/demo}; fi

setup_started=$SECONDS
bash launch/setup.sh
wamjax=.venv/bin/wamjax
export PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
# shellcheck source=launch/jobs.sh
source launch/jobs.sh
hold "$out"

# --- Stages -----------------------------------------------------------------------------------------------------

record() { # stage, seconds: appends to the account of where the time went
  printf '{"stage": "%s", "wall_seconds": %d}\n' "$1" "$2" >>"$out/stages.jsonl"
}

on_stop() { [ -z "${under_way:-}" ] || record "$under_way" $((SECONDS - started)); } # interrupted: count it too

stage() { # name, title, command...: runs a command (which may start several jobs) as a timed stage
  local title=$2 status=0
  under_way=$1
  started=$SECONDS
  shift 2
  printf '\n== %s\n' "$title"
  "$@" || status=$?
  record "$under_way" $((SECONDS - started))
  under_way=''
  if [ "$status" != 0 ]; then
    printf 'error: the stage "%s" failed; finished work is kept: put it right and run the same command again\n' "$title" >&2
    exit "$status"
  fi
}

job() { start "$wamjax" "$@" && finish; }

config() { if [ "$mode" = quick ]; then echo configs/metaworld_quick.py; else echo "configs/metaworld_$1.py"; fi; }

train() { # variants...: trains them; two go side by side where each can have its own half of the cores
  local cores=() core half variant
  while IFS= read -r core; do cores+=("$core"); done < <(allowed_cores)
  half=$((${#cores[@]} / 2))
  if [ $# = 2 ] && [ "$half" -gt 0 ]; then
    train_one "$1" taskset -c "$(IFS=,; echo "${cores[*]:0:half}")"
    train_one "$2" taskset -c "$(IFS=,; echo "${cores[*]:half}")"
    finish
  else
    for variant in "$@"; do train_one "$variant" env XLA_FLAGS="$(share_cores ${#cores[@]})" && finish || return $?; done
  fi
}

share_cores() { # cores: prints XLA flags that make them up to eight devices, which share a batch better than threads do
  local devices=1
  while [ $((devices * 2)) -le "$1" ] && [ "$devices" -lt 8 ]; do devices=$((devices * 2)); done
  echo "--xla_force_host_platform_device_count=$devices ${XLA_FLAGS:-}"
}

train_one() { # variant, prefix...: starts its training, under the prefix command
  local variant=$1
  shift
  start_labelled "$variant" "$out/logs/train-$variant.log" "$@" \
    "$wamjax" train --config "$(config "$variant")" --data "$out/data" --out "$out/$variant"
}

evaluate() { # variant, name, options...: closed loop on the held-out set that was never used while tuning
  local variant=$1 name=$2
  shift 2
  job evaluate --checkpoint "$out/$variant" --seeds held_out_b --data "$out/data" \
    --out "$out/$variant/evaluation/$name.json" "$@"
}

reference() { # random or expert
  job evaluate --actor "$1" --config "$(config joint)" --seeds held_out_b --out "$out/reference/$1.json"
}

open_loop() { # variant: action error and the quality of the imagined video
  job evaluate --checkpoint "$out/$1" --open-loop --data "$out/data" --out "$out/$1/open_loop/open_loop.json"
}

# --- The run ----------------------------------------------------------------------------------------------------

record setup $((SECONDS - setup_started))
stage collect "collecting episodes" job data collect --config "$(config joint)" --out "$out/data"
if [ "$mode" = quick ]; then
  stage train "training joint" train joint
  stage evaluate "evaluating joint on held-out instances" evaluate joint held_out_b
else
  stage train "training joint and representation_only" train joint representation_only
  stage evaluate "evaluating the random policy" reference random
  stage evaluate "evaluating the expert" reference expert
  for variant in joint representation_only; do
    stage evaluate "evaluating $variant on held-out instances" evaluate "$variant" held_out_b
  done
fi
stage open_loop "comparing imagined with real video" open_loop joint

if [ "$mode" = full ]; then
  stage report "writing the report of the first stage" job report "$out"
  stage train "training action_only and blind" train action_only blind
  stage train "training inverse_dynamics" train inverse_dynamics
  for variant in action_only blind inverse_dynamics; do
    stage evaluate "evaluating $variant on held-out instances" evaluate "$variant" held_out_b
  done
  for variant in joint representation_only; do
    stage evaluate "evaluating $variant with swapped images" evaluate "$variant" swapped_images --images swap
  done
  stage open_loop "comparing imagined with real video (inverse_dynamics)" open_loop inverse_dynamics
fi

stage report "writing the report" job report "$out"
printf '\ndone in %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
full_path=$(cd "$out" && pwd)
printf 'report:  %s\nnumbers: %s\n' "$full_path/report.html" "$full_path/report.json"
