"""Writes the fixed list of clips of the benchmark `arenas` from the test split of the default data set.

python data/arenas_av/cases.py --source=DIR/arenas_av/1.0.0 --out=poet/evaluation/suites/arenas_v1.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from poet.evaluation.suites import cases
from poet.media import write_text
from poet.spec import ClipSpec
from poet.store.tfds_source import tfds_examples, tfds_text

FIELDS = {
    "name": "arenas",
    "version": 1,
    "data": "python data/arenas_av/build.py --data_dir=DIR (size 64, seed 0), then --data=DIR/arenas_av/1.0.0",
    "split": "test",
    "clip": ClipSpec(frames=17, height=64, width=64, rate_hz=8.0, sample_rate_hz=16_000),
}
PER_PLACE = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of the data set in the TFDS format")
    parser.add_argument("--out", required=True, help="file to write")
    args = parser.parse_args()
    empty = cases.Suite(**FIELDS, cases=())
    found = list(cases.raw(empty, args.source, empty.split))
    records = tfds_examples(args.source, empty.split, ("record",), 0, len(found))
    episodes = [str(json.loads(tfds_text(record["record"]))["episode"]) for record in records]
    suite = cases.chosen(FIELDS, list(zip(found, episodes, strict=True)), PER_PLACE)
    write_text(Path(args.out), json.dumps(dataclasses.asdict(suite), indent=1) + "\n")
    print(f"{len(suite.cases)} clips of {len({case.episode for case in suite.cases})} episodes: {suite.fingerprint}")


if __name__ == "__main__":
    main()
