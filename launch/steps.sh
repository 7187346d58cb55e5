# shellcheck shell=bash
# For scripts whose steps --dry-run can show, to be sourced.

dry=''

run() { # command...: runs it; with --dry-run only prints it, ready to paste
  local words
  if [ -z "$dry" ]; then
    "$@"
  else
    printf -v words '%q ' "$@"
    printf '%s\n' "${words% }"
  fi
}

fail() { # message: ends the script with a mistake of the user
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() { # script: prints the comment at its head
  sed -n '2,/^[^#]/{/^#SBATCH/d;s/^# \{0,1\}//p;}' "$1"
  exit 0
}
