#!/usr/bin/env bash
# Makes .venv with everything that poet, its quickstart and its tests need; does nothing the second time.
# Sourced by the other scripts: afterwards the working folder is the checkout and .venv is active.
#   POET_PYTHON=python3.12 bash launch/quickstart.sh     to choose the interpreter (3.11 or 3.12)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '\033[1m== %s\033[0m\n' "$*"; }

find_python() {
  local candidate
  for candidate in ${POET_PYTHON:-} python3.11 python3.12 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
       "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  echo "poet needs CPython 3.11 or 3.12 with the venv module (Debian: apt-get install python3 python3-venv)" >&2
  return 1
}

may_install_packages() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

# The game engine plays sound through OpenAL, which it loads at run time.
install_openal() {
  if ldconfig -p 2>/dev/null | grep -q 'libopenal\.so\.1'; then return; fi
  if may_install_packages; then
    say "Installing libopenal1 (game sound)"
    if (apt-get update -qq && apt-get install -y -qq libopenal1) >/dev/null 2>&1; then return; fi
  fi
  say "libopenal1 is missing and cannot be installed here: clips will have no sound (apt-get install libopenal1)"
}

# Debian splits venv off python3, so a bare machine may lack it.
install_python_venv() {
  if find_python >/dev/null 2>&1 || ! may_install_packages; then return; fi
  say "Installing python3-venv"
  (apt-get update -qq && apt-get install -y -qq python3 python3-venv) >/dev/null 2>&1 || true
}

# What the quickstart and the tests need.
POET_EXTRAS=test,freedoom,perceptual,atari,natural

# From the lock of this interpreter where there is one: the same files on every machine, by their hashes.  Where an index
# lacks one of them, and with POET_UNLOCKED=1, the newest versions that setup.cfg allows.
install_packages() {
  local lock
  pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  lock=launch/locks/$(.venv/bin/python -c 'import sys, sysconfig
print(sysconfig.get_platform(), "-cp", *sys.version_info[:2], sep="")').txt
  if [ -f "$lock" ] && [ -z "${POET_UNLOCKED:-}" ] && install_locked "$lock"; then return; fi
  "${pip[@]}" -e ".[$POET_EXTRAS]"
  "${pip[@]}" --no-deps -r launch/locks/alone.in
}

# Fails where a file cannot be had; a file of another hash ends the installation.
install_locked() {
  local said
  if said=$("${pip[@]}" --require-hashes -r "$1" 2>&1 && "${pip[@]}" --no-deps --no-build-isolation -e . 2>&1 &&
            "${pip[@]}" --no-deps --require-hashes -r launch/locks/alone.txt 2>&1); then return; fi
  tail -n 5 <<< "$said" >&2
  if grep -q 'DO NOT MATCH THE HASHES' <<< "$said"; then exit 1; fi
  say "Not every file of $1 can be had here: installing the versions that setup.cfg allows"
  return 1
}

install_poet() {
  local python stamp
  stamp=$(cat setup.cfg pyproject.toml launch/setup.sh launch/locks/* | sha256sum | cut -c1-16)
  if [ "$(cat .venv/poet-stamp 2>/dev/null)" = "$stamp" ]; then return; fi
  install_python_venv
  python=$(find_python)
  say "Installing poet into .venv with $("$python" --version) (a few minutes the first time)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # What this package was called before goes first: both own the command `poet`.
  .venv/bin/python -m pip uninstall --quiet --yes --disable-pip-version-check poet >/dev/null 2>&1 || true
  install_packages
  # Two scores of sound are built from source; without a compiler their columns are left out.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[sound]' >/dev/null 2>&1 ||
    say "pesq and visqol-python cannot be built here: poet tokenizer-eval leaves out PESQ and ViSQOL (apt-get install g++ python3-dev, pip install -e '.[sound]')"
  echo "$stamp" > .venv/poet-stamp
}

install_poet
install_openal
# shellcheck disable=SC1091
source .venv/bin/activate
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
