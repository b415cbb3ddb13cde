#!/usr/bin/env bash
# Renews the lock files that launch/setup.sh installs from: every package with its version and the hashes of its files.
#   bash launch/lock.sh            the newest versions that setup.cfg allows
#   bash launch/lock.sh --keep     the versions that are locked, where setup.cfg still allows them
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python -m pip install --quiet --disable-pip-version-check -e '.[release]'

head='# Written by launch/lock.sh; launch/setup.sh installs from it.'
lock() {  # lock FILE PYTHON_VERSION ARGUMENTS_OF_UV...
  local file=$1 version=$2
  shift 2
  if [ "${keep:-}" != yes ]; then rm -f "$file"; fi
  uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version "$version" \
    --python-platform x86_64-unknown-linux-gnu --output-file "$file" "$@"
  sed -i "1i $head" "$file"
}

if [ "${1:-}" = --keep ]; then keep=yes; fi
extras=()
for extra in ${POET_EXTRAS//,/ }; do extras+=(--extra "$extra"); done
for version in 3.11 3.12; do
  lock "launch/locks/linux-x86_64-cp${version/./}.txt" "$version" setup.cfg "${extras[@]}"
done
lock launch/locks/alone.txt 3.11 --no-deps launch/locks/alone.in
say "Renewed launch/locks"
