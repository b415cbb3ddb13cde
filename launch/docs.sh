#!/usr/bin/env bash
# Writes the API reference from the docstrings: static pages, to be opened in a browser.
#   launch/docs.sh [FOLDER] [PACKAGE]     by default all of poet, into build/api
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
folder=${1:-build/api}
# By name: a package with `__all__` would hide its modules.
mapfile -t modules < <(find "${2:-poet}" -name '*.py' ! -name '__main__.py' | sort | sed 's|/__init__||; s|\.py$||; s|/|.|g')
python -W ignore -m pdoc --docformat google --output-directory "$folder" "${modules[@]}"
say "Wrote $folder/index.html"
