#!/usr/bin/env bash
# Sets up, then runs every test.  Arguments go to pytest: `launch/test.sh tests/tasks -k layout`.
#   -m slow, -m fault, -m benchmark select the tests that the plain run leaves out.
#   --coverage    also prints which lines of poet/ no test ran
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments=()
for argument in "$@"; do
  if [ "$argument" = --coverage ]; then arguments+=(--cov=poet --cov-report=term-missing:skip-covered)
  else arguments+=("$argument"); fi
done
# Test files run in two processes: most of their time is compilation, which uses one core.  The longest
# files begin (tests/conftest.py), so that both processes end together.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
