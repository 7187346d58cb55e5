# shellcheck shell=bash
# Jobs of a script, to be sourced: start commands, wait for them, and leave none behind.
#
# Each job is a process group of its own, so that stopping it stops its workers too. A lock that every job inherits
# shows whether jobs of an earlier, killed script still run in the same folder; those are stopped first.

running=() # process groups of the jobs under way

hold() { # folder: takes the folder for this script; stops what a killed predecessor left running there
  local folder=$1 owner='' group groups=()
  mkdir -p "$folder"
  jobs_file=$folder/.jobs
  exec 9>"$folder/.lock"
  if ! lock; then
    { read -r owner && read -r -a groups; } <"$jobs_file" 2>/dev/null || true
    if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
      printf 'error: process %s is already at work in %s: wait for it, or stop it with kill %s\n' "$owner" "$folder" "$owner" >&2
      exit 2
    fi
    printf 'stopping what an interrupted run left behind in %s\n' "$folder"
    for group in ${groups[@]+"${groups[@]}"}; do kill -KILL -- "-$group" 2>/dev/null || true; done
    sleep 1
    lock || { printf 'error: another process still works in %s: stop it first\n' "$folder" >&2; exit 2; }
  fi
  note_jobs
}

lock() { "${python:-.venv/bin/python}" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; }

note_jobs() { printf '%s\n%s\n' "$$" "${running[*]-}" >"$jobs_file"; }

start() { # command...: starts a job; Ctrl-C reaches it through the trap below
  set -m # job control: the job gets its own process group
  (set +m; "$@") </dev/null &
  running+=($!)
  set +m
  note_jobs
}

start_labelled() { # label, log file, command...: as start; its lines go to the log, and to the terminal with the label
  start labelled "$@"
}

labelled() {
  local label=$1 log=$2 line
  shift 2
  mkdir -p "$(dirname "$log")"
  "$@" 2>&1 | tee -a "$log" | while IFS= read -r line; do printf '[%s] %s\n' "$label" "$line"; done
}

finish() { # waits for all jobs; the exit code is that of one that failed
  local group status=0
  for group in ${running[@]+"${running[@]}"}; do wait "$group" || status=$?; done
  running=()
  note_jobs
  return "$status"
}

stop_jobs() { # ends all jobs: politely, then not
  local group _
  for group in ${running[@]+"${running[@]}"}; do kill -TERM -- "-$group" 2>/dev/null || true; done
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    for group in ${running[@]+"${running[@]}"}; do kill -0 -- "-$group" 2>/dev/null && sleep 0.5 && continue 2; done
    break
  done
  for group in ${running[@]+"${running[@]}"}; do kill -KILL -- "-$group" 2>/dev/null || true; done
  running=()
}

interrupted() { # signal number: ends everything, after on_stop where the script defines it
  trap - EXIT INT TERM HUP
  stop_jobs
  if declare -F on_stop >/dev/null; then on_stop; fi
  printf '\nstopped; run the same command again to go on\n' >&2
  exit $((128 + $1))
}
trap stop_jobs EXIT
trap 'interrupted 2' INT
trap 'interrupted 15' TERM
trap 'interrupted 1' HUP

allowed_cores() { # prints the cores this process may use, one per line (nothing where that cannot be told)
  local list range
  command -v taskset >/dev/null || return 0
  list=$(taskset -cp $$ 2>/dev/null) || return 0
  for range in $(printf '%s' "${list##*: }" | tr ',' ' '); do seq "${range%-*}" "${range#*-}"; done
}
