#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one machine to several slices: asks for them, sets all machines up, trains, and asks for
# others when they are taken away (--spot). Run it in tmux or screen: it ends with the training.
#
#   bash launch/tpu_vm.sh --name NAME --zone ZONE --type v5p-1024 [options] TRAIN ARGUMENTS
#   bash launch/tpu_vm.sh --name NAME --zone ZONE --delete
#
#   TRAIN ARGUMENTS    --config FILE --data DIR --out DIR [more of `wamjax train`]
#   --slices N         slices of that type (1); set mesh.replica to as many
#   --spot             cheaper machines that may be taken away
#   --version VERSION  of the TPU software (default: by type)
#   --prepare COMMAND  first run on every machine, for instance to mount the file system with --data and --out
#   --dry-run          print the commands, run nothing
#
# What is committed is what runs. The machines cost money until --delete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

name='' zone='' type='' version='' delete='' slices=1 prepare=true spot=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage launch/tpu_vm.sh ;;
    --dry-run) dry=yes; shift; continue ;;
    --delete) delete=yes; shift; continue ;;
    --spot) spot=(--spot); shift; continue ;;
    --name | --zone | --type | --version | --slices | --prepare) declare "${1#--}=${2:?"error: $1 needs a value"}" ;;
    *) break ;;
  esac
  shift 2
done
[ -n "$name" ] && [ -n "$zone" ] || fail "give --name and --zone (see bash launch/tpu_vm.sh --help)"

tpus() { # verb, arguments...: of the queued resource
  run gcloud compute tpus queued-resources "$@" --zone="$zone"
}

everywhere() { tpus ssh "$name" --node=all --worker=all --batch-size=all --command="$1"; } # command

state() { # prints what has become of the request; nothing where there is none
  if [ -n "$dry" ]; then echo "$pretended"; else
    tpus describe "$name" --format='value(state.state)' 2>/dev/null || true
  fi
}

runtime() { # prints the TPU software for the type, from cloud.google.com/tpu/docs/runtimes
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

remove() { tpus delete "$name" --force --quiet; }

create() {
  local nodes=(--node-id="$name")
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus create "$name" "${nodes[@]}" --accelerator-type="$type" --runtime-version="${version:-$(runtime)}" \
    ${spot[@]+"${spot[@]}"}
  pretended=ACTIVE
}

obtain() { # machines that are there and set up
  case $(state) in
    '') create ;;
    FAILED | SUSPEND*) remove && create ;;
  esac
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPEND*) return 1 ;; esac
    printf 'waiting for %s: %s\n' "$name" "$(state)"
    sleep 30
  done
  run mkdir -p .cache
  run git archive --format=tar.gz --output=.cache/code.tar.gz HEAD
  tpus scp .cache/code.tar.gz "$name:" --node=all --worker=all --batch-size=all
  # The machines have Python 3.10: uv brings a newer one, which setup.sh finds.
  everywhere "{ $prepare; } && mkdir -p wamjax && tar -xzf code.tar.gz -C wamjax && curl -LsSf https://astral.sh/uv/install.sh | sh && .local/bin/uv python install 3.12 && bash wamjax/launch/setup.sh --extra tpu"
}

pretended=''
if [ -n "$delete" ]; then
  remove
  exit
fi
[ -n "$type" ] || fail "give --type, for instance v5p-1024"
[ $# -gt 0 ] || fail "say what to train: --config FILE --data DIR --out DIR (see bash launch/tpu_vm.sh --help)"
printf -v command '%q ' bash wamjax/launch/train.sh --extra tpu "$@"
starts=0
until obtain && everywhere "${command% }"; do
  status=$?
  starts=$((starts + 1))
  [ "$starts" -lt 100 ] || fail "started again 100 times: look at the log before doing so once more"
  if [ "$(state)" != ACTIVE ]; then
    printf '%s was taken away: asking for it again\n' "$name"
  elif [ "$status" = 42 ]; then
    printf '%s is still there, but its run was told to stop, or hung: starting it again\n' "$name"
  else
    fail "the training failed, see above; the machines are still there, and cost, until --delete"
  fi
done
