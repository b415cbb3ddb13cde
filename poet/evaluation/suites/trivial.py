"""Trivial submissions to a benchmark: what a model must beat.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels, D of a described clip.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from poet.conditioning import regions
from poet.evaluation import baselines, leaks
from poet.evaluation.score.sides import Item
from poet.evaluation.suites.cases import Real, items
from poet.evaluation.suites.tasks import SHUFFLED, SuiteTask

SEED = 0


@dataclasses.dataclass(kw_only=True)
class Texts:
    """Captions of training clips, which grow as these pass.

    Attributes:
      clips_NxD: described clips of the list.
      likeness_N, nearest: the training clip that is most like each of them in all frames, and its caption.
      counts: caption -> training clips.
    """

    clips_NxD: np.ndarray
    likeness_N: np.ndarray
    nearest: list[str]
    counts: collections.Counter[str]

    @classmethod
    def of(cls, reals: Sequence[Real]) -> Texts:
        clips_NxD = np.stack([leaks.described(real.video).ravel() for real in reals])
        count = len(reals)
        return cls(
            clips_NxD=clips_NxD, likeness_N=np.full(count, -np.inf), nearest=[""] * count, counts=collections.Counter()
        )

    def passing(self, training: Iterable[Item]) -> Iterator[Item]:
        """The training clips, looked at as they pass."""
        for item in training:
            self.counts[item.caption] += 1
            found_N = self.clips_NxD @ leaks.described(item.video).ravel()
            for place in np.flatnonzero(found_N > self.likeness_N):
                self.likeness_N[place], self.nearest[place] = found_N[place], item.caption
            yield item

    @property
    def commonest(self) -> str:
        """The caption of the most training clips; of several, the first in the alphabet."""
        return min(self.counts, key=lambda text: (-self.counts[text], text), default="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trivial:
    """Trivial submissions that all tasks share.

    Attributes:
      of_training: as `baselines.of_training`.
      texts: of the same training clips.
      partners: for each clip the place of another one.
    """

    of_training: Mapping[str, Sequence[np.ndarray]]
    texts: Texts
    partners: Sequence[int]


def of(reals: Sequence[Real], training: Iterable[Item]) -> Trivial:
    """Of the clips of the list, in one pass over the training clips."""
    rng, texts = np.random.default_rng(SEED), Texts.of(reals)
    found = baselines.of_training(items(reals), texts.passing(training), rng)
    return Trivial(of_training=found, texts=texts, partners=baselines.partners(len(reals), rng))


def make(
    name: str, task: SuiteTask, reals: Sequence[Real], simple: Trivial, made: Sequence[np.ndarray | str | None]
) -> Sequence[np.ndarray | str | None]:
    """The clips, sounds or texts of a trivial submission; () where it needs training clips and there are none.

    Args:
      made: those of the submission.
    """
    videos, turned = [real.video for real in reals], simple.partners
    taken = {"training mean": "training_mean", "random training clip": "random_training"}
    taken["nearest training clip"] = "nearest_training"
    if name in taken:
        return simple.of_training.get(taken[name], ())
    fills = {"mean colour": "mean", "nearest pixels": "edge"}
    if name in fills:
        return [regions.fill(video, ~task.given(*video.shape[1:3]), fills[name]) for video in videos]
    builders = {
        "last frame": lambda: [baselines.held(video, task.opening) for video in videos],
        "crossfade": lambda: [crossfade(video) for video in videos],
        "smooth fill": lambda: [smooth_fill(video, ~task.given(*video.shape[1:3])) for video in videos],
        "another clip": lambda: [videos[other] for other in turned],
        "silence": lambda: [np.zeros_like(real.sound) for real in reals],
        "another sound": lambda: [reals[other].sound for other in turned],
        "commonest caption": lambda: [simple.texts.commonest] * len(reals) if simple.texts.counts else [],
        "nearest training caption": lambda: simple.texts.nearest if simple.texts.counts else [],
        "another caption": lambda: [reals[other].case.text for other in turned],
        SHUFFLED: lambda: [made[other] for other in turned],
    }
    return builders[name]()


def crossfade(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """From the first frame to the last one by a linear mix of both."""
    share_T = np.linspace(0, 1, len(video_TxHxWx3))[:, None, None, None]
    mixed = (1 - share_T) * video_TxHxWx3[0] + share_T * video_TxHxWx3[-1]
    return np.rint(mixed).astype(np.uint8)


def smooth_fill(video_TxHxWx3: np.ndarray, hole_TxHxW: np.ndarray) -> np.ndarray:
    """Each pixel of the hole as the mean of its neighbours (Laplace's equation), of which the border has fewer.

    A frame of which nothing is kept becomes grey.
    """
    filled = regions.fill(video_TxHxWx3, hole_TxHxW, "grey")
    for hole_HxW in np.unique(hole_TxHxW, axis=0):
        if hole_HxW.any() and not hole_HxW.all():
            frames = (hole_TxHxW == hole_HxW).all(axis=(1, 2))
            filled[frames] = _solved(video_TxHxWx3[frames], hole_HxW)
    return filled


def _solved(frames_TxHxWx3: np.ndarray, hole_HxW: np.ndarray) -> np.ndarray:
    """The smooth fill of frames of one hole, exactly."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    height, width = hole_HxW.shape
    grid = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(
        [np.stack([a.ravel(), b.ravel()]) for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]))], axis=1
    )
    pairs = np.concatenate([pairs, pairs[::-1]], axis=1)
    links = sparse.csr_matrix((np.ones(pairs.shape[1]), pairs), shape=(grid.size,) * 2)
    laplacian = (sparse.diags(np.asarray(links.sum(axis=1)).ravel()) - links).tocsr()
    hole, values = hole_HxW.ravel(), np.moveaxis(frames_TxHxWx3.astype(np.float64), 0, 2).reshape(grid.size, -1)
    rows = laplacian[hole]
    values[hole] = splu(rows[:, hole].tocsc()).solve(-(rows[:, ~hole] @ values[~hole]))
    solved = np.moveaxis(values.reshape(height, width, len(frames_TxHxWx3), 3), 2, 0)
    return np.clip(np.rint(solved), 0, 255).astype(np.uint8)
