#!/usr/bin/env bash
# Sets up, then shows everything on your machine: clips sampled from the shipped weights, then a small model of your own, from game clips
# over codes to its evaluation and its export.  Finished stages are kept; run it again to resume.
#   bash launch/quickstart.sh [WORKDIR]        default: runs/quickstart; delete it to start over
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The language model that ships; its spec names its tokenizer, and gin/models/ has a file of that one's name.
SHIPPED=data/pretrained/lm_arenas
WORK=${1:-runs/quickstart}
SOURCE=$WORK/data/arenas_av/1.0.0
TOKENIZER=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['video_tokenizer']['path'])" "$SHIPPED/spec.json")
NETWORK=gin/models/$(basename "$TOKENIZER").gin
mkdir -p "$WORK/stages" "$WORK/logs"

# Stage -> seconds on two idle cores, from which the time left is told.
NAMES=(data clips tokenizer tokenize train eval export)
declare -A EXPECTED=([data]=15 [clips]=45 [tokenizer]=75 [tokenize]=25 [train]=125 [eval]=45 [export]=30)
DONE_S=0 SPENT_S=0

# How long the stages without a record will take, at the speed of those that were run.
left() {
  local name rest=0
  for name in "${NAMES[@]}"; do
    if [ ! -f "$WORK/stages/$name.json" ]; then rest=$((rest + EXPECTED[$name])); fi
  done
  if [ "$DONE_S" -gt 0 ]; then rest=$((rest * SPENT_S / DONE_S)); fi
  rest=$((rest - $1))
  if [ "$rest" -lt 60 ]; then echo "less than a minute left"; else echo "about $(((rest + 30) / 60)) min left"; fi
}

show() { if [ -t 1 ]; then printf '\r\033[K%s' "$1"; fi; }

# Sets CPU to the CPU seconds of all commands that have ended (in a subshell `times` would know of none).
count_cpu() {
  times > "$WORK/stages/.times"
  CPU=$(sed -n '2s/[ms]/ /gp' "$WORK/stages/.times" | awk '{printf "%.1f", $1 * 60 + $2 + $3 * 60 + $4}')
}

# stage NAME NOTE COMMAND...: runs the command, its output in a log file, unless it finished in an earlier run; keeps its time.
stage() {
  local name=$1 note=$2 record=$WORK/stages/$1.json log=$WORK/logs/$1.log start=$SECONDS number before
  shift 2
  number=$(printf '%s\n' "${NAMES[@]}" | grep -nx "$name" | cut -d: -f1)
  local title="[$number/${#NAMES[@]}] $name: $note"
  if [ -f "$record" ]; then echo "$title: finished earlier"; return; fi
  count_cpu
  before=$CPU
  if [ ! -t 1 ]; then printf '%s ... %s ... ' "$title" "$(left 0)"; fi
  "$@" > "$log" 2>&1 &
  RUNNING=$!
  while kill -0 "$RUNNING" 2>/dev/null; do
    show "$title ... $((SECONDS - start)) s, $(left $((SECONDS - start)))"
    sleep 0.5
  done
  if ! wait "$RUNNING"; then
    show ""
    printf '%s FAILED; the end of %s:\n' "$name" "$log"
    tail -n 15 "$log"
    exit 1
  fi
  count_cpu
  printf '{"name": "%s", "seconds": %d, "cpu_seconds": %s, "status": "done", "note": "%s"}\n' \
    "$name" $((SECONDS - start)) "$(awk "BEGIN {printf \"%.1f\", $CPU - $before}")" "$note" > "$record.tmp"
  mv "$record.tmp" "$record"
  DONE_S=$((DONE_S + EXPECTED[$name])) SPENT_S=$((SPENT_S + SECONDS - start))
  show "$title: "
  echo "$((SECONDS - start)) s"
}

# A training that is asked to stop saves first.
RUNNING=
trap 'if [ -n "$RUNNING" ]; then kill -TERM "$RUNNING" 2>/dev/null || true; wait "$RUNNING" 2>/dev/null || true; fi; echo; echo "stopped; run it again to go on"; exit 130' INT TERM

report() { poet report --workdir="$WORK" > "$WORK/logs/report.log" 2> "$WORK/logs/report_errors.log" || { tail -n 5 "$WORK/logs/report_errors.log"; exit 1; }; }

common=(--gin_file=gin/experiments/quickstart_train.gin --gin_file="$NETWORK" --gin.VIDEO_TOKENIZER.path="$WORK/tokenizer/tokenizer"
        --gin.STORE.source="$SOURCE" --gin.STORE.path="$WORK/store" --gin.DATA.store="$WORK/store" --gin.EVAL.source="$SOURCE")
say "Seven stages, about six minutes on two idle cores; what commands say goes to $WORK/logs"
stage data "game clips with sound, depth and captions, of two places" \
  python data/arenas_av/build.py --data_dir="$WORK/data" --arena=basic --arena=defend_the_line \
    --train_clips_per_arena=100 --validation_clips_per_arena=16 --test_clips_per_arena=1
stage clips "the shipped model draws: a clip with sound from text, a hole filled, a picture that moves, a sound for a clip" \
  poet eval --checkpoint="$SHIPPED" --out="$WORK/first" --overwrite --metric=examples --gin.EVAL.examples=True \
    --gin.EVAL.source="$SOURCE" --gin.EVAL.clips=4 \
    --gin.DATA.mixture_rates="{'text_to_video_with_audio': 1, 'inpainting': 1, 'image_to_video': 1, 'video_to_audio': 1}"
if [ -f "$SHIPPED/scores.json" ]; then cp "$SHIPPED/scores.json" "$WORK/shipped_scores.json"; fi
report
echo "      first pictures: $WORK/report.html (grows with every stage)"
stage tokenizer "a minute's fine-tuning of the shipped video tokenizer" \
  poet tokenizer-train --gin_file=gin/experiments/quickstart_tokenizer.gin --gin_file="$NETWORK" \
    --gin.TOKENIZER_TRAIN.init_from="$TOKENIZER" --gin.TOKENIZER_TRAIN.source="$SOURCE" --workdir="$WORK/tokenizer"
stage tokenize "clips and captions to codes and text states" poet tokenize "${common[@]}"
stage train "a small language model, from scratch, to draw clips from text and to go on with clips" \
  poet train "${common[@]}" --workdir="$WORK/lm"
report
stage eval "on validation clips: likelihood, condition gain, sampled clips" \
  poet eval --checkpoint="$WORK/lm" --out="$WORK/eval" --overwrite
stage export "programs that run without the model's code, compared with the checkpoint token for token" \
  poet export --checkpoint="$WORK/lm" --out="$WORK/export" --overwrite --check="$WORK/export_check.json" \
    --tasks=text_to_video --gin.EXPORT.platforms="('cpu',)"
report
say "Done: open $WORK/report.html"
sed 1d "$WORK/logs/report.log"
