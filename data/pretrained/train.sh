#!/usr/bin/env bash
# Trains the shipped weights from scratch: arenas -> tokenizer -> codes -> language model -> adaptation -> release.
# It can be stopped at any moment; run it again to resume from the newest checkpoint.
#   bash data/pretrained/train.sh                         all stages, niced, in runs/pretrained
#   bash data/pretrained/train.sh --hours=3 lm            only this stage, for three hours
#   bash data/pretrained/train.sh --status                progress of the stages
#   bash data/pretrained/train.sh --device=gpu --plan     the recipe for one accelerator, with estimated times
#   bash data/pretrained/train.sh --help                  all flags
set -euo pipefail
from=$PWD
# shellcheck disable=SC1091
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/setup.sh"
exec python data/pretrained/long_training/main.py --from="$from" "$@"
