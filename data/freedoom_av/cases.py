"""Writes the fixed list of clips of the benchmark `freedoom` from the test split of the default data set.

python data/freedoom_av/cases.py --source=DIR/freedoom_av/1.0.0 --out=poet/evaluation/suites/freedoom_v1.json
"""

from __future__ import annotations

import pathlib
import sys

from poet.spec import ClipSpec

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips import case_list  # noqa: E402

FIELDS = {
    "name": "freedoom",
    "version": 1,
    "data": "python data/freedoom_av/build.py --data_dir=DIR (size 64, seed 0), then --data=DIR/freedoom_av/1.0.0",
    "split": "test",
    "clip": ClipSpec(frames=17, height=64, width=64, rate_hz=8.0, sample_rate_hz=16_000),
    # Captions name no place; probes were fitted on the arenas.
    "without": (
        "place_agreement",
        "shot_seen",
        "shot_heard",
        "shots_together",
        "caption_place_and_motion",
        "caption_place",
    ),
}
PER_MAP = 10

if __name__ == "__main__":
    case_list.main(__doc__, FIELDS, PER_MAP)
