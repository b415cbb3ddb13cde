"""The units of work of a store: about equally many clips each, cut inside long files.

They follow from the plan and the source alone: whoever encodes them, and however often that is
interrupted, the intermediate files are the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from poet.store.encode import PartialShard, index_file, load_partial
from poet.store.manifest import Plan
from poet.store.raw import Part

# What is lost at a kill, and waits for one worker: a few minutes of a small machine's work.
CLIPS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Items start..stop-1 of a split, or a part of a single one, and the intermediate file they become.

    `clips` is about how many clips that gives.
    """

    split: str
    start: int
    stop: int
    part: Part | None = None
    clips: int
    file: pathlib.Path

    @property
    def done(self) -> bool:
        return self.partial() is not None

    @property
    def intact(self) -> bool:
        """Whether it is done, and its file holds what was written; reads the file."""
        partial = self.partial()
        return partial is not None and partial.is_intact()

    def partial(self) -> PartialShard | None:
        """Its result; None if it is not complete."""
        return load_partial(self.file)

    def forget(self) -> None:
        """Makes a damaged range one that is to be done, for every process that looks."""
        index_file(self.file).unlink(missing_ok=True)

    def __str__(self) -> str:
        if self.part is None:
            return f"{self.split} {self.start}..{self.stop - 1}"
        last = "" if self.part.stop is None else self.part.stop - 1
        return f"{self.split} {self.start}, clips {self.part.first}..{last}"


def size(plan: Plan) -> int:
    """Clips of a range: whole batches."""
    return -(-min(plan.clips_per_shard, CLIPS) // plan.batch) * plan.batch


def plan_ranges(split: str, clips: Sequence[int], plan: Plan, folder: pathlib.Path) -> Iterator[Range]:
    """The ranges of a split, in its order.

    Args:
        clips: about how many each item gives.
        folder: of the intermediate files.
    """
    most, limit = size(plan), plan.ingest.clips_per_file
    # Where shots are counted, what a part gives depends on those before it.
    cuttable = not (plan.ingest.shots and limit)
    start = gathered = 0

    def make(first: int, stop: int, count: int, part: Part | None = None) -> Range:
        name = f"{first:010d}-{stop:010d}" + (f"-{part.first:08d}" if part else "")
        file = folder / f"{name}.examples"
        return Range(split=split, start=first, stop=stop, part=part, clips=count, file=file)

    for index, count in enumerate(clips):
        long = cuttable and count > most
        if gathered and (long or gathered + count > most):
            yield make(start, index, gathered)
            start, gathered = index, 0
        gathered += count
        if long:
            for first in range(0, count, most):
                stop = first + most if first + most < count else limit or None
                yield make(index, index + 1, min(most, count - first), Part(first=first, stop=stop))
            start, gathered = index + 1, 0
    if gathered:
        yield make(start, len(clips), gathered)
