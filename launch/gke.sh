#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through xpk (pip install xpk), which writes the JobSet and queues it.
#
#   bash launch/gke.sh --name NAME --cluster CLUSTER --zone ZONE --type v5p-1024 [options] TRAIN ARGUMENTS
#   bash launch/gke.sh --name NAME --cluster CLUSTER --zone ZONE --delete
#
#   TRAIN ARGUMENTS    --config FILE --data DIR --out DIR [more of `wamjax train`]
#   --project PROJECT  of Google Cloud (default: gcloud's)
#   --slices N         slices of that type (1); set mesh.replica to as many
#   --storage NAME     volume to mount, from `xpk storage attach`: --data and --out belong there (repeatable)
#   --image IMAGE      image with Python 3.11 to 3.13 that the code is added to (python:3.12)
#   --restarts N       how often a run that lost machines is started again, and goes on (100)
#   --dry-run          print the commands, run nothing
#
# What is committed is what runs. Progress: xpk workload list --cluster CLUSTER, and the logs that xpk names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

name='' cluster='' zone='' type='' project='' delete=''
slices=1 image=python:3.12 restarts=100 storage=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage launch/gke.sh ;;
    --dry-run) dry=yes; shift; continue ;;
    --delete) delete=yes; shift; continue ;;
    --name | --cluster | --zone | --type | --project | --slices | --image | --restarts)
      declare "${1#--}=${2:?"error: $1 needs a value"}" ;;
    --storage) storage+=("--storage=${2:?"error: --storage needs a name"}") ;;
    *) break ;;
  esac
  shift 2
done
[ -n "$name" ] && [ -n "$cluster" ] && [ -n "$zone" ] || fail "give --name, --cluster and --zone (see bash launch/gke.sh --help)"
where=(--workload "$name" --cluster "$cluster" --zone "$zone" ${project:+--project "$project"})
if [ -n "$delete" ]; then
  run xpk workload delete "${where[@]}"
  exit
fi
[ -n "$type" ] || fail "give --type, for instance v5p-1024"
[ $# -gt 0 ] || fail "say what to train: --config FILE --data DIR --out DIR (see bash launch/gke.sh --help)"

code=.cache/gke/$name # a clean copy: xpk adds the whole folder to the image
printf -v command '%q ' bash launch/train.sh --extra tpu "$@"
run rm -rf "$code"
run mkdir -p "$code"
run git archive --output="$code.tar" HEAD
run tar -xf "$code.tar" -C "$code"
# xpk starts a workload again on exit codes 42 and above 126, which lost machines give, not on a user's mistake.
run xpk workload create "${where[@]}" --tpu-type="$type" --num-slices="$slices" --max-restarts="$restarts" \
  --termination-grace-period-seconds=300 --base-docker-image="$image" --script-dir="$code" \
  ${storage[@]+"${storage[@]}"} --command "${command% }"
