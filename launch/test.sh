#!/usr/bin/env bash
# Sets up, then runs every test.  Arguments go to pytest: `launch/test.sh tests/tasks -k layout`.
#   -m slow, -m fault, -m benchmark select the tests that the plain run leaves out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Test files run in two processes: most of their time is compilation, which uses one core.
exec python -m pytest -n 2 --dist loadfile "$@"
