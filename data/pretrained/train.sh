#!/usr/bin/env bash
# Everything that ships trained, from nothing: arenas -> tokenizer -> codes -> language model -> adaptation -> release.
# Stop it at any moment, by any means, and run it again: it goes on from the newest checkpoint.
#   bash data/pretrained/train.sh                         all stages, niced, in runs/pretrained
#   bash data/pretrained/train.sh --hours=3 lm            this stage alone, for three hours
#   bash data/pretrained/train.sh --status                where it stands
#   bash data/pretrained/train.sh --device=gpu --plan     the recipe for one accelerator, and how long it takes
#   bash data/pretrained/train.sh --help                  the rest
set -euo pipefail
from=$PWD
# shellcheck disable=SC1091
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/setup.sh"
exec python data/pretrained/long_training/main.py --from="$from" "$@"
