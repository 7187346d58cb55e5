#!/usr/bin/env bash
# Sets up and runs the checks: ruff, mypy, then the tests.
#
#   bash launch/test.sh [pytest arguments]           the fast tier (minutes on two cores)
#   bash launch/test.sh --slow [pytest arguments]    the long drills
#
# Exit code 0 when every check passed. Results are left in runs/test/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tier="not slow"
case ${1:-} in
  -h | --help)
    sed -n 's/^# \{0,1\}//p' launch/test.sh | sed -n 2,7p
    exit 0
    ;;
  --slow)
    tier="slow"
    shift
    ;;
esac

bash launch/setup.sh
bin=$PWD/.venv/bin
results=runs/test
mkdir -p "$results" .cache
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}
# The programs of tests are tiny, and most of their time is the compiler's: it optimises the code of kernels less.
export JAX_DISABLE_MOST_OPTIMIZATIONS=${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}
# Processes of tests share the cores; OpenBLAS's threads would spin for each other's turn, once for minutes.
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
export RUFF_CACHE_DIR=$PWD/.cache/ruff MYPY_CACHE_DIR=$PWD/.cache/mypy

failed=()
check() { # name, command...: runs a check and remembers it if it fails
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
}

tests() {
  local status=0
  "$bin/python" -m pytest -n 2 --dist worksteal -m "$tier" -o cache_dir=.cache/pytest \
    --junitxml="$results/junit.xml" "$@" 2>&1 | tee "$results/pytest.log" || status=$?
  # 5: nothing selected. In the fast tier that is a mistake; the slow tier may still be empty.
  if [ "$status" = 5 ] && [ "$tier" = slow ]; then return 0; fi
  return "$status"
}

# Beside the tests, for alone it would leave a core idle.
"$bin/mypy" wamjax >"$results/mypy.log" 2>&1 &
types=$!
typed() {
  local status=0
  wait "$types" || status=$?
  cat "$results/mypy.log"
  return "$status"
}

check ruff "$bin/ruff" check .
check pytest tests "$@"
check mypy typed

printf '\nresults: %s (log), %s (JUnit)\n' "$results/pytest.log" "$results/junit.xml"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
printf 'all checks passed\n'
