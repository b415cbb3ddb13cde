"""Writes the fixed list of clips of the benchmark `arenas` from the test split of the default data set.

python data/arenas_av/cases.py --source=DIR/arenas_av/1.0.0 --out=poet/evaluation/suites/arenas_v2.json
"""

from __future__ import annotations

import pathlib
import sys

from poet.spec import ClipSpec

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips import case_list  # noqa: E402

FIELDS = {
    "name": "arenas",
    "version": 2,
    "data": "python data/arenas_av/build.py --data_dir=DIR (size 64, seed 0), then --data=DIR/arenas_av/1.0.0",
    "split": "test",
    "clip": ClipSpec(frames=17, height=64, width=64, rate_hz=8.0, sample_rate_hz=16_000),
}
PER_PLACE = 12

if __name__ == "__main__":
    case_list.main(__doc__, FIELDS, PER_PLACE)
