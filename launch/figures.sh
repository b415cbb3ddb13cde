#!/usr/bin/env bash
# Makes the pictures and measured tables of the documentation anew.
#   launch/figures.sh                 lists them, with the files that each writes
#   launch/figures.sh NAME...         makes these
# Some read data, in environment variables:
#   CLIPS     Arenas-AV (data/arenas_av/build.py), a folder .../arenas_av/1.0.0; LARGE_CLIPS the same with --size=128
#   STORE     its token store, by `poet tokenize --gin_file=gin/experiments/arenas.gin`
#   GAMES     Freedoom-AV (data/freedoom_av/build.py); LARGE_GAMES the same with --size=128; ALL_SOUNDS, Open-Sounds (data/open_sounds/build.py)
set -euo pipefail
LM=data/pretrained/lm_arenas LARGER=data/pretrained/superres_arenas NET=data/pretrained/soundstream_16k

# -> poet/tasks/layouts.svg
layouts() { poet describe --gin_file=gin/experiments/pretrain_300m.gin --picture=poet/tasks/layouts.svg --overwrite; }

# -> poet/models/sharding.svg
sharding() { poet describe --gin_file=gin/experiments/pretrain_8b.gin --devices=128 --placement=poet/models/sharding.svg --overwrite; }

# -> data/pretrained/lm_arenas/samples.png data/pretrained/lm_arenas/samples.webp
samples() { python data/pretrained/picture.py --checkpoint="$LM" --source="$CLIPS" --out="$LM/samples.png" --moving="$LM/samples.webp"; }

# -> data/pretrained/lm_arenas/scores.json data/pretrained/lm_arenas/README.md
card() {
  poet eval --checkpoint="$LM" --metric=likelihood --metric=condition_gain --scores="$LM/scores.json" --out="$work/eval" \
    --gin.DATA.store="$STORE" --gin.EVAL.gain_clips=96
  python data/pretrained/card.py "$LM" --write
}

# -> data/pretrained/bars.md poet/evaluation/suites/arenas_v2_lm_arenas.md
bars() {
  python data/pretrained/bars.py --clips="$CLIPS" --work="$work/bars"
  cp "$work/bars/arenas/benchmark.md" poet/evaluation/suites/arenas_v2_lm_arenas.md
}

# -> data/pretrained/superres_arenas/arenas.png data/pretrained/superres_arenas/scores.json data/pretrained/superres_arenas/scores_freedoom.json
larger() {
  poet upscale-eval --checkpoint="$LARGER" --set=source --set=natural --out="$work/larger" --gin.EVAL.source="$LARGE_CLIPS" \
    --gin.EVAL.split=test --gin.EVAL.clips=16
  cp "$work/larger/source.png" "$LARGER/arenas.png"
  cp "$work/larger/upscale_scores.json" "$LARGER/scores.json"
  poet upscale-eval --checkpoint="$LARGER" --set=source --out="$work/larger_games" --gin.EVAL.source="$LARGE_GAMES" \
    --gin.EVAL.split=test --gin.EVAL.clips=16
  cp "$work/larger_games/upscale_scores.json" "$LARGER/scores_freedoom.json"
}

# -> data/pretrained/soundstream_16k/speech.png
sound() {
  poet tokenizer-eval --gin_file=gin/experiments/tokenizer_sound.gin --tokenizer="$NET" --out="$work/sound" \
    --gin.EVAL.source="$GAMES" --gin.EVAL.sounds="$ALL_SOUNDS" --gin.EVAL.clips=16
  cp "$work/sound/speech.png" "$NET/speech.png"
}

# -> tests/benchmarks/README.md
benchmarks() { python tests/benchmarks/table.py; }

# -> gin/models/where_it_fits.md
fits() { python tests/benchmarks/where_it_fits.py; }

# -> poet/models/visual_head.md
visual_head() { python tests/benchmarks/bench_visual_head.py --page; }

# -> poet/planning/reliability.md
goodput() { python tests/benchmarks/goodput.py --page; }

# -> poet/evaluation/README.md
agreement() { python tests/benchmarks/metric_agreement.py --write; }

# -> poet/evaluation/sensitivity.md
sensitivity() { python tests/benchmarks/metric_sensitivity.py --source="$CLIPS" --features="$work/vectors" --write; }

# -> poet/sampling/README.md
watermark() { python tests/benchmarks/bench_watermark.py --size=128 --size=256 --clean="$CLIPS" --marked="$CLIPS:test" --write; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mapfile -t known < <(sed -n 's/^\([a-z_]*\)() {.*/\1/p' "${BASH_SOURCE[0]}")
if [ $# = 0 ]; then
  sed -n '/^# -> /{s/^# -> //; h; n; s/() {.*//; G; s/\n/: /; p}' "${BASH_SOURCE[0]}"
  exit
fi
for name in "$@"; do
  case " ${known[*]} " in *" $name "*) ;; *) echo "error: no figure '$name': choose from ${known[*]}" >&2; exit 2 ;; esac
done
source launch/setup.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in "$@"; do "$name"; done
