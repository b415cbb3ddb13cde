"""Trivial baselines of a set of clips, as submissions of `poet score`: what a model must beat.

Shape suffixes: T frames, H height, W width, N clips of the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from poet import media
from poet.evaluation.leaks import described
from poet.evaluation.score.sides import Clips, Item
from poet.spec import UserError
from poet.store.captions import CAPTIONS_FILE

# Name of a baseline -> what it is.
BASELINES = {
    "last_frame": "the conditioning frames, then the last of them all the time",
    "training_mean": "the mean of all training clips, frame by frame",
    "random_training": "a random training clip",
    "nearest_training": "the training clip whose first frame is most like the clip's (8x8 pixels, less their mean)",
    "shuffled": "another clip of the set itself: real pictures, wrong pairs",
}


def make(real: Clips, training: Clips, conditioning_frames: int, seed: int, folder: Path) -> dict[str, int]:
    """Writes folder/BASELINE/KEY.apng and `captions.jsonl` with the texts of the set; baseline -> its clips.

    The set is kept in memory, of the training set only what is chosen.

    Raises:
      UserError: fewer than two clips of the set, or no training clip, can be read.
    """
    items, rng = list(real), np.random.default_rng(seed)
    if len(items) < 2:
        raise UserError(f"{real.side.path} has {len(items)} clips that can be read: at least two are needed")
    chosen = of_training(items, training, rng)
    if not chosen:
        raise UserError(f"{training.side.path} has no clip that can be read")
    chosen["shuffled"] = [items[partner].video for partner in partners(len(items), rng)]
    chosen["last_frame"] = [held(item.video, conditioning_frames) for item in items]
    return {name: _write(folder / name, items, chosen[name], real.clip.rate_hz) for name in BASELINES}


def partners(count: int, rng: np.random.Generator) -> list[int]:
    """For each of two or more clips another one; one circle leads through all of them."""
    turned = np.roll(rng.permutation(count), 1)
    partner = dict(zip(np.roll(turned, -1).tolist(), turned.tolist()))
    return [partner[place] for place in range(count)]


def held(video_TxHxWx3: np.ndarray, known: int) -> np.ndarray:
    places = np.minimum(np.arange(len(video_TxHxWx3)), known - 1)
    return video_TxHxWx3[places]


def of_training(
    items: Sequence[Item], training: Iterable[Item], rng: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """The baselines that need the training set, in one pass over it; {} of none."""
    firsts_NxD = np.concatenate([described(item.video[:1]) for item in items])
    likeness_N, nearest = np.full(len(items), -2.0), [items[0].video] * len(items)
    # A clip stays with chance 1 / (clips so far): each is as probable in the end.
    random, total, count = list(nearest), 0.0, 0
    for item in training:
        count += 1
        total = total + item.video.astype(np.float64)
        found_N = firsts_NxD @ described(item.video[:1])[0]
        for place in np.flatnonzero(found_N > likeness_N):
            likeness_N[place], nearest[place] = found_N[place], item.video
        for place in np.flatnonzero(rng.random(len(items)) < 1 / count):
            random[place] = item.video
    if not count:
        return {}
    mean = np.rint(total / count).astype(np.uint8)
    return {"nearest_training": nearest, "random_training": random, "training_mean": [mean] * len(items)}


def _write(folder: Path, items: list[Item], videos: list[np.ndarray], rate_hz: float) -> int:
    lines = []
    for item, video in zip(items, videos):
        file = folder / f"{item.stem}.apng"
        file.parent.mkdir(parents=True, exist_ok=True)
        media.write_apng(file, video, rate_hz)
        lines.append(json.dumps({"file": file.relative_to(folder).as_posix(), "caption": item.caption}))
    media.write_text(folder / CAPTIONS_FILE, "\n".join(lines) + "\n")
    return len(lines)


def text(made: Mapping[str, int], out: str, path: str) -> Iterator[str]:
    """What was made, and the command that scores it."""
    for name, count in made.items():
        yield f"{out}/{name}: {count} clips, {BASELINES[name]}"
    yield f"next: poet score {out}/{next(iter(made))} --against={path} --pairs --out=scores"
