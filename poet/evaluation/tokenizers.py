"""Common parts of the scores of video and audio tokenizers (`poet tokenizer-eval`): renderings of sets, the record."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation import metric, record
from poet.evaluation.metric import Batch, Found, Metric
from poet.evaluation.metrics import pixels
from poet.evaluation.record import Table
from poet.spec import UserError

_LOG = logging.getLogger(__name__)

RESULT_FILE = "tokenizer_scores.json"
CLIPS_SHOWN = 3

Row = dict[str, Any]
# Set -> table -> its rows.
Scored = Mapping[str, Mapping[str, Sequence[Row]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """A set, encoded and decoded by a tokenizer or a codec.

    Attributes:
      name: 'tokenizer', a codec, or either with its rate, as in file names.
      media_N: uint8 [N, T, H, W, 3] or int16 [N, S].
      row: its columns besides scores; begins with `codec` and its rate.
      detail: its fields in the JSON besides the row.
      visualised: whether it may be in the picture of the set.
    """

    name: str
    media_N: np.ndarray
    row: Row
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)
    visualised: bool = True

    @property
    def label(self) -> str:
        return self.row["codec"]

    def measured(self, batch: Batch, metrics: Sequence[Metric]) -> tuple[Row, Found]:
        """Its row with what the metrics find in a batch, and that."""
        found = metric.measure(batch, metrics)
        return {**self.row, **metric.columns(found)}, found


def check(sets: Mapping[str, np.ndarray], what: str, dtype: str, dims: str, skipped: Mapping[str, str]) -> None:
    """Raises UserError for no set of `what`, or for one of another dtype, with other dims or empty.

    Args:
      dims: names and sizes of the dims, such as "clips, frames, height, width, 3".
    """
    if not sets:
        raise UserError(f"no set of {what} to score on: {'; '.join(skipped.values())}")
    expected = [int(dim) if dim.isdigit() else 0 for dim in dims.split(", ")]
    for name, media in sets.items():
        fits = media.ndim == len(expected) and all(size in (0, n) for size, n in zip(expected, media.shape))
        if media.dtype != dtype or not fits or not media.size:
            raise UserError(f"set {name!r} has dtype {media.dtype} and shape {media.shape}: expected {dtype} ({dims})")


def check_clips(sets: Mapping[str, np.ndarray], skipped: Mapping[str, str]) -> None:
    """`check` of clips uint8 (N, T, H, W, 3); UserError also for some that are too small for SSIM."""
    check(sets, "clips", "uint8", "clips, frames, height, width, 3", skipped)
    for name, clips in sets.items():
        if min(clips.shape[2:4]) < pixels.SSIM_WINDOW:
            raise UserError(
                f"set {name!r} has clips of {clips.shape[2]}x{clips.shape[3]} pixels: SSIM needs sides "
                f"of at least {pixels.SSIM_WINDOW}"
            )


def each(sets: Mapping[str, np.ndarray], what: str) -> Iterator[tuple[str, np.ndarray]]:
    """The sets in turn, each of which is logged."""
    for name, media in sets.items():
        _LOG.info("scoring %d %s of set %s", len(media), what, name)
        yield name, media


def tables(
    scored: Scored, metrics: Mapping[str, Sequence[Metric]], notes: Mapping[str, Sequence[str]]
) -> dict[str, Table]:
    """The tables of several sets: the rows of each, which begin with `set`, one below the other.

    Args:
      metrics, notes: of each table; one without rows is skipped.
    """
    rows = {
        table: [{"set": name, **row} for name, found in scored.items() for row in found.get(table, ())]
        for table in notes
    }
    return {n: Table(rows=found, metrics=metrics[n], notes=notes[n]) for n, found in rows.items() if found}


def write(
    out: Path, subject: Mapping[str, Any], measured: Mapping[str, Table], skipped: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """Writes OUT/tokenizer_scores.json, and returns what it holds (`record.content`)."""
    result = record.content(subject, measured, skipped, **more)
    record.write(out / RESULT_FILE, result)
    return result


def summary(result: Mapping[str, Any]) -> str:
    """The result as text: its tables, how to read them, and what was skipped."""
    return record.text(result, notes=True)
