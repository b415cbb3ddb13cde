#!/usr/bin/env bash
# Sets up, then the whole pipeline on real data: clips -> codes -> pretraining -> evaluation ->
# generated clips -> export -> report.  Finished stages are kept; run it again to resume.
#   bash launch/quickstart.sh [WORKDIR]        default: runs/quickstart; delete it to start over
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

WORK=${1:-runs/quickstart}
CONFIG=gin/experiments/quickstart.gin
SOURCE=$WORK/data/freedoom_av/1.0.0
STORE=$WORK/store
TRAINED=data/pretrained/lm_64
mkdir -p "$WORK/stages"

# stage NAME NOTE COMMAND...: runs the command unless it finished in an earlier run; keeps its time.
stage() {
  local name=$1 note=$2 record=$WORK/stages/$1.json start
  shift 2
  if [ -f "$record" ]; then say "$name: finished earlier"; return; fi
  say "$name: $note"
  start=$SECONDS
  "$@"
  printf '{"name": "%s", "seconds": %d, "status": "done", "note": "%s"}\n' \
    "$name" $((SECONDS - start)) "$note" > "$record.tmp"
  mv "$record.tmp" "$record"
}

common=(--gin_file="$CONFIG" --gin.STORE.source="$SOURCE" --gin.STORE.path="$STORE"
        --gin.DATA.store="$STORE" --gin.TOKENIZER_TRAIN.source="$SOURCE" --gin.EVAL.source="$SOURCE")
PROMPTS=(--prompt "the player walks forward and turns left" --prompt "the player turns right, fires the shotgun"
         --prompt "the player walks forward, an imp in view" --prompt "the player turns left")

stage data "render game clips with sound, depth and captions" \
  python data/freedoom_av/build.py --data_dir="$WORK/data" \
    --train_clips_per_map=4 --validation_clips_per_map=6 --test_clips_per_map=1
stage tokenizer-train "a few steps, to show that it trains; the shipped weights are used below" \
  poet tokenizer-train "${common[@]}" --gin.TRAIN.steps=6 --gin.VIDEO_TOKENIZER.path= \
    --workdir="$WORK/tokenizer"
stage tokenize "clips, their sound, conditions made from them, and captions to codes and text states" \
  poet tokenize "${common[@]}"
stage train "pretrain a small prefix LM from scratch, on every task" \
  poet train "${common[@]}" --workdir="$WORK/lm"
stage eval "likelihood, reconstruction and frame prediction" \
  poet eval --checkpoint="$WORK/lm" --out="$WORK/eval" --overwrite
stage generate "clips with sound from text" \
  poet generate --checkpoint="$WORK/lm" --task=text_to_video_with_audio "${PROMPTS[@]}" --out="$WORK/generated" --overwrite
stage eval-trained "the same for the checkpoint that was trained for longer, and an example of every task" \
  poet eval --checkpoint="$TRAINED" --out="$WORK/eval_trained" --overwrite \
    --gin.EVAL.source="$SOURCE" --gin.DATA.store="$STORE" --gin.EVAL.examples=True
stage generate-trained "clips with sound of the checkpoint that was trained for longer" \
  poet generate --checkpoint="$TRAINED" --task=text_to_video_with_audio "${PROMPTS[@]}" --out="$WORK/generated_trained" --overwrite
stage export "StableHLO artefacts, weights and spec, then one clip made from them" \
  poet export --checkpoint="$WORK/lm" --out="$WORK/export" --overwrite --check="$WORK/export_check.json"
cp "$TRAINED/log.jsonl" "$WORK/trained_metrics.jsonl"
say "report"
poet report --workdir="$WORK"
say "Done: open $WORK/report.html; generated clips are in $WORK/generated"
