"""Fits the linear probes of the arenas on training clips, and checks them on clips of other episodes.

python data/arenas_av/probes.py --source=DIR/arenas_av/1.0.0 --out=data/pretrained/arenas_probes
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from poet.evaluation import probes
from poet.evaluation.metrics import arenas
from poet.evaluation.probes import BANGS, FLASHES, PLACES, Probe
from poet.runs import manifest, outputs
from poet.store.tfds_source import tfds_examples, tfds_text

FIELDS = ("video", "audio", "text", "record")
# Of every second clip of the training split the frames of shots; of each clip every fourth frame of its place.
SHOT_EVERY, PLACE_EVERY = 2, 4
PENALTY = {PLACES: 1e-4, FLASHES: 1e-3, BANGS: 1e-3}
NO, YES = "no shot", "shot"


class Rows(NamedTuple):
    """What the probes read of a clip, its place, its caption, and the frames that follow a shot."""

    place: str
    caption: str
    places: np.ndarray
    flashes: np.ndarray
    bangs: np.ndarray
    shots: np.ndarray


def clips(source: str, split: str) -> Iterator[Rows]:
    count = tfds.builder_from_directory(source).info.splits[split].num_examples
    for example in tfds_examples(source, split, FIELDS, 0, count):
        record, video = json.loads(tfds_text(example["record"])), example["video"]
        shots = np.zeros(len(video), bool)
        shots[[step + 1 for step, kind, _ in record["events"] if kind == "shot" and step + 1 < len(video)]] = True
        rows = probes.place_rows(video), probes.flash_rows(video), probes.bang_rows(example["audio"], len(video))
        yield Rows(record["place"], tfds_text(example["text"]), *rows, shots)


def fitted(found: list[Rows]) -> dict[str, Probe]:
    """The probes of training clips."""
    labels = tuple(sorted({clip.place for clip in found}))
    places = np.concatenate([clip.places[::PLACE_EVERY] for clip in found])
    classes = np.repeat([labels.index(clip.place) for clip in found], len(places) // len(found))
    made = {PLACES: probes.fit(places, classes, labels, PENALTY[PLACES])}
    some = found[::SHOT_EVERY]
    shots = np.concatenate([clip.shots for clip in some])
    for name in (FLASHES, BANGS):
        rows = np.concatenate([getattr(clip, name) for clip in some])
        made[name] = _for_clips(probes.fit(rows, shots.astype(int), (NO, YES), PENALTY[name]), name, some)
    return made


def _for_clips(probe: Probe, name: str, found: list[Rows]) -> Probe:
    """The bias at which clips with and without a shot are told apart the best, each kind counted alike."""
    highest = np.array([_odds(probe, getattr(clip, name)).max() for clip in found])
    shot = np.array([arenas.SHOT in clip.caption for clip in found])
    chosen = max(np.unique(highest), key=lambda x: (highest[shot] >= x).mean() + (highest[~shot] < x).mean())
    return dataclasses.replace(probe, bias_K=probe.bias_K - np.array([0, chosen], np.float32))


def _odds(probe: Probe, rows: np.ndarray) -> np.ndarray:
    logs = probe(rows)
    return logs[:, 1] - logs[:, 0]


def accuracies(made: dict[str, Probe], found: list[Rows]) -> dict[str, float]:
    """Of clips: the fraction in the right place, and the balanced accuracies of shots against captions."""
    places = [made[PLACES].labels[made[PLACES](clip.places).mean(axis=0).argmax()] == clip.place for clip in found]
    shot = np.array([arenas.SHOT in clip.caption for clip in found])
    scores = {PLACES: float(np.mean(places))}
    for name in (FLASHES, BANGS):
        said = np.array([_odds(made[name], getattr(clip, name)).max() >= 0 for clip in found])
        scores[name] = float((said[shot].mean() + (~said[~shot]).mean()) / 2)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of the data set in the TFDS format")
    parser.add_argument("--out", required=True, help="folder to write the weights and scores to")
    args = parser.parse_args()
    made, folder = fitted(list(clips(args.source, "train"))), Path(args.out)
    scores = {split: accuracies(made, list(clips(args.source, split))) for split in ("validation", "test")}
    probes.save(folder, made)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    manifest.write(folder, {"kind": outputs.WEIGHTS}, [probes.FILE])
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
