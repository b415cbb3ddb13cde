"""The fixed list of clips of a benchmark, from a split of a data set: what the `cases.py` of each recipe shares."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.evaluation.suites import cases
from poet.media import write_text
from poet.store.tfds_source import tfds_examples, tfds_text


def main(description: str, fields: Mapping[str, Any], per_place: int) -> None:
    """The command line: writes the list.

    Args:
      fields: of `cases.Suite`, but for its cases.
      per_place: clips of each place.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of the data set in the TFDS format")
    parser.add_argument("--out", required=True, help="file to write")
    args = parser.parse_args()
    empty = cases.Suite(**fields, cases=())
    found = list(cases.raw(empty, args.source, empty.split))
    examples = tfds_examples(args.source, empty.split, ("record",), 0, len(found))
    records = [json.loads(tfds_text(example["record"])) for example in examples]
    suite = cases.chosen(dict(fields), list(zip(found, records, strict=True)), per_place)
    write_text(Path(args.out), json.dumps(dataclasses.asdict(suite), indent=1) + "\n")
    print(f"{len(suite.cases)} clips of {len({case.episode for case in suite.cases})} episodes: {suite.fingerprint}")
