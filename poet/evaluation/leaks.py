"""Are samples copies?  The nearest training clip of each, beside how near clips get that nobody trained on.

A frame is 8x8 pixels of three colours, less their mean, at length 1, so that brightness, contrast and fine detail do
not count.  Two frames are as similar as their product, -1 .. 1.  A sample is as similar to a training clip as its
frames are, on average, to the most similar frames of that clip, wherever in time these stand.

Shape suffixes: T frames, H height, W width, F frames of a sample, D of a described frame, N samples, M training clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from poet.evaluation import intervals
from poet.evaluation.features.base import resized
from poet.evaluation.report import tables
from poet.evaluation.score.sides import Clips, Item
from poet.spec import UserError

FORMAT = 1
SIDE = 8
# Frames of a sample that are looked for.
FRAMES = 4
# A sample is flagged if at most this share of held-out clips is as near to the training set.
RARE = 0.01


def described(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 [T, D]; a frame of one colour is 0."""
    rows = resized(video_TxHxWx3, SIDE, SIDE, "box").reshape(len(video_TxHxWx3), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


@dataclasses.dataclass(kw_only=True)
class Nearest:
    """The nearest training clips of some clips, found in one pass over the training set.

    Attributes:
      clips_NxFxD: described frames.
      similarity_N: to the nearest clip so far.
      place_N: of that clip; -1 before there is one.
    """

    clips_NxFxD: np.ndarray
    similarity_N: np.ndarray
    place_N: np.ndarray

    @classmethod
    def of(cls, items: Iterable[Item]) -> tuple[Nearest, list[Item]]:
        """Of clips, whose described frames alone are kept; and the items without their pictures."""
        rows, kept = [], []
        for item in items:
            chosen = np.unique(np.linspace(0, len(item.video) - 1, FRAMES).astype(int))
            found = described(item.video[chosen])
            rows.append(np.pad(found, ((0, FRAMES - len(found)), (0, 0)), mode="edge"))
            kept.append(dataclasses.replace(item, video=None, sound=None))
        if not rows:
            raise UserError("no clip can be read")
        count = len(rows)
        return cls(clips_NxFxD=np.stack(rows), similarity_N=np.full(count, -2.0), place_N=np.full(count, -1)), kept

    def see(self, place: int, frames_TxD: np.ndarray) -> None:
        """Compares a training clip."""
        similarity_N = (self.clips_NxFxD @ frames_TxD.T).max(axis=2).mean(axis=1)
        nearer_N = similarity_N > self.similarity_N
        self.similarity_N = np.where(nearer_N, similarity_N, self.similarity_N)
        self.place_N = np.where(nearer_N, place, self.place_N)


def chances(similarity_N: np.ndarray, heldout_K: np.ndarray) -> np.ndarray:
    """float64 [N]: the share of held-out clips that are at least as near; never 0, as K clips cannot say that."""
    ordered = np.sort(heldout_K)
    as_near_N = len(ordered) - np.searchsorted(ordered, similarity_N, side="left")
    return (1 + as_near_N) / (1 + len(ordered))


def search(submission: Clips, training: Clips, heldout: Clips) -> dict[str, Any]:
    """What the command writes; see the head of this module.

    Raises:
      UserError: a set has no clip that can be read.
    """
    samples, items = Nearest.of(submission)
    others, _ = Nearest.of(heldout)
    names = {}
    for item in training:
        frames_TxD = described(item.video)
        names[item.place] = item.key
        for one in (samples, others):
            one.see(item.place, frames_TxD)
    if not names:
        raise UserError(f"{training.side.path} has no clip that can be read")
    chance_N = chances(samples.similarity_N, others.similarity_N)
    rows = zip(items, samples.place_N.tolist(), samples.similarity_N.tolist(), chance_N.tolist())
    found = [
        {
            "clip": item.key,
            "nearest": names[place],
            "similarity": value,
            "as near": chance,
            "places": [item.place, place],
        }
        for item, place, value, chance in rows
    ]
    sides = {"submission": submission, "training": training, "heldout": heldout}
    return {
        "format": FORMAT,
        **{name: clips.manifest for name, clips in sides.items()},
        **summary(samples.similarity_N, others.similarity_N, chance_N),
        "clips": sorted(found, key=lambda row: -row["similarity"]),
    }


def summary(similarity_N: np.ndarray, heldout_K: np.ndarray, chance_N: np.ndarray) -> dict[str, Any]:
    """`flagged` clips of `expected` if samples were as far from the training set as held-out clips are; `p` of the
    one-sided rank test that samples are nearer; `difference` of the medians, with the interval of resampled clips."""
    resolvable = RARE * (1 + len(heldout_K)) >= 1
    return {
        "flagged": int((chance_N <= RARE).sum()) if resolvable else None,
        "expected": RARE * len(similarity_N),
        "p": float(stats.mannwhitneyu(similarity_N, heldout_K, alternative="greater").pvalue),
        "median": {"submission": float(np.median(similarity_N)), "heldout": float(np.median(heldout_K))},
        "difference": _difference(similarity_N, heldout_K),
    }


def _difference(similarity_N: np.ndarray, heldout_K: np.ndarray) -> dict[str, float]:
    """Median of samples less that of held-out clips; both are resampled, each by itself."""
    rng = np.random.default_rng(intervals.SEED)
    medians = [np.median(rng.choice(x, (intervals.RESAMPLES, len(x))), axis=1) for x in (similarity_N, heldout_K)]
    low, high = intervals.bounds(medians[0] - medians[1])
    return {"value": float(np.median(similarity_N) - np.median(heldout_K)), "low": low, "high": high}


def text(found: Mapping[str, Any], shown: int = 8) -> str:
    """The record in words, with the nearest pairs."""
    rows: Sequence[Mapping[str, Any]] = found["clips"][:shown]
    table = tables.format_table(
        [{name: row[name] for name in ("clip", "nearest", "similarity", "as near")} for row in rows], "NEAREST"
    )
    medians, flagged, away = found["median"], found["flagged"], found["difference"]
    lines = [
        f"similarity to the nearest training clip, median: {medians['submission']:.3f} of the submission, "
        f"{medians['heldout']:.3f} of held-out clips, by {away['value']:+.3f} "
        f"[{away['low']:+.3f}, {away['high']:+.3f}]; samples are nearer: p = {found['p']:.3g}",
        f"{flagged} clips are nearer than {1 - RARE:.0%} of held-out clips; {found['expected']:.1f} are by chance"
        if flagged is not None
        else f"too few held-out clips to flag single samples: {round(1 / RARE) - 1} are needed",
        "'as near' is the share of held-out clips that are at least as near to the training set",
    ]
    return "\n".join([table, "", *lines])
