#!/usr/bin/env bash
# Sets up everything that wamjax needs on this machine: .venv, the package with its simulator and development
# tools, and a working off-screen OpenGL. Finished work is recognised, so a second run takes a moment.
#
#   bash launch/setup.sh            PYTHON=/path/to/python bash launch/setup.sh
#   bash launch/setup.sh --extra tpu|cuda    for training on accelerators: that extra instead, and no simulator
#
# Exit codes: 0 ready; 2 something is missing that only you can provide (one line says what).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/.venv
stamp=$venv/wamjax-setup
log=$PWD/.cache/setup.log
gl_packages=(libegl1 libgl1 libopengl0 libgl1-mesa-dri)
extras=sim,dev
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }
case "$*" in
  '') ;;
  '--extra tpu' | '--extra cuda') extras=$2 ;;
  *) fail "unknown arguments '$*': the only ones are --extra tpu and --extra cuda" ;;
esac

# --- Python -----------------------------------------------------------------------------------------------------

usable() { # python: is it a Python that wamjax runs on?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() { # prints a usable Python, $PYTHON before all others
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python from 3.11 to 3.13: set PYTHON to one"
    printf '%s\n' "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python python3.12 python3.13 python3.11 \
    "$HOME"/.pyenv/versions/3.1[123]*/bin/python "$HOME"/.local/share/uv/python/cpython-3.1[123]*/bin/python; do
    if usable "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python from 3.11 to 3.13 found: install one (Debian, Ubuntu: apt-get install python3 python3-venv), or set PYTHON=/path/to/python"
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

make_venv() { # creates .venv, or replaces one that is broken or of another Python than $PYTHON
  if usable "$venv/bin/python" && { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$venv/bin/python")" ]; } &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  local python package
  python=$(find_python)
  package=python$(version "$python")-venv
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install "$package" || fail "$python cannot make virtual environments: run 'apt-get install $package', then this again"
  fi
  say "making .venv with Python $(version "$python")"
  "$python" -m venv --clear "$venv"
}

# --- Packages ---------------------------------------------------------------------------------------------------

fingerprint() { # of all that decides what is installed; the folder too, since an editable install points at it
  "$venv/bin/python" - "$extras" <<'PY'
import hashlib, os, sys
files = ["setup.cfg", "pyproject.toml", "launch/setup.sh", "constraints/py%d%d.txt" % sys.version_info[:2]]
state = [sys.version.encode(), os.getcwd().encode(), sys.argv[1].encode(), *(open(name, "rb").read() for name in files)]
print(hashlib.sha256(b"\0".join(state)).hexdigest())
PY
}

finished() { # did an earlier set-up finish, and has nothing it depends on changed since?
  [ -f "$stamp" ] && [ "$(fingerprint 2>/dev/null)" = "$(cat "$stamp")" ] &&
    { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$venv/bin/python")" ]; }
}

install_packages() {
  say "installing the packages of $constraints (the first time takes minutes; details in .cache/setup.log)"
  local line
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --constraint "$constraints" --editable ".[$extras]" 2>&1 | tee "$log" |
    while IFS= read -r line; do
      case $line in *Downloading*MB*\) | *"Installing collected"* | *ERROR*) printf '  %.110s\n' "${line#"${line%%[! ]*}"}" ;; esac
    done; then
    tail -n 5 "$log" >&2
    fail "pip could not install the packages (is the network up?): see .cache/setup.log, then run this again"
  fi
}

# --- Off-screen OpenGL ------------------------------------------------------------------------------------------

apt_install() { # packages...: installs them where that needs no password
  local run=()
  command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
    run=(sudo -n)
  fi
  say "installing $* (apt-get)"
  { ${run[@]+"${run[@]}"} apt-get update -qq &&
    ${run[@]+"${run[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
    >>"$log" 2>&1
}

renders() { # backend: does MuJoCo draw a picture with it that is not empty?
  MUJOCO_GL=$1 "$venv/bin/python" - >/dev/null 2>>"$log" <<'PY'
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 48, 64)
renderer.update_scene(data)
image = renderer.render()
renderer.close()
assert image.max() > image.min(), "the picture is empty"
PY
}

working_gl() { # prints the first backend that draws
  local backend
  for backend in ${MUJOCO_GL:-$gl_backends}; do
    if renders "$backend"; then
      printf '%s\n' "$backend"
      return
    fi
  done
  return 1
}

check_gl() {
  local gl_backends="egl osmesa" backend command="apt-get install -y ${gl_packages[*]} libosmesa6"
  [ "$(uname)" = Darwin ] && gl_backends="cgl glfw"
  if backend=$(working_gl) ||
    { [ -z "${MUJOCO_GL:-}" ] && apt_install "${gl_packages[@]}" && backend=$(working_gl); } ||
    { [ -z "${MUJOCO_GL:-}" ] && apt_install libosmesa6 && backend=$(working_gl); }; then
    say "off-screen rendering works (MUJOCO_GL=$backend)"
  elif [ -n "${MUJOCO_GL:-}" ]; then
    fail "MuJoCo cannot draw with MUJOCO_GL=$MUJOCO_GL (see .cache/setup.log): unset it, or install what it needs"
  else
    fail "no OpenGL to draw the simulator with: run '$command' as root (elsewhere: Mesa's EGL or OSMesa), then this again"
  fi
}

if ! finished; then
  mkdir -p "$(dirname "$log")"
  make_venv
  constraints=constraints/py$(version "$venv/bin/python" | tr -d .).txt
  install_packages
  [ "$extras" != sim,dev ] || check_gl # nothing but the simulator draws
  fingerprint >"$stamp"
fi
say "ready: $("$venv/bin/python" --version), .venv"
