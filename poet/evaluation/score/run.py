"""`poet score`: a set of clips beside another one, by every metric that applies, without any model of poet.

Shape suffixes: T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet.evaluation import metric, metrics, record
from poet.evaluation.features import Features
from poet.evaluation.metric import GROUPS, PLACES, Batch, Found, Measured, Metric, Summary
from poet.evaluation.metrics import recall
from poet.evaluation.metrics.sounds import to_float
from poet.evaluation.record import Table
from poet.evaluation.samples import REFERENCE, SIDE, SUBMISSION, field_of
from poet.evaluation.score.sides import Clips, Item
from poet.evaluation.score.vectors import Cache, Once
from poet.runs.versions import installed
from poet.tokenizers.video.base import VideoTokenizer

_LOG = logging.getLogger(__name__)

RESULT_FILE, CSV_FILE, TEXT_FILE, PAGE_FILE = "scores.json", "scores.csv", "scores.txt", "report.html"
SETS, CLIPS, PAIRS, SOUNDS, CODES = "sets", "clips", "pairs", "sounds", "codes"
# Of scores of pairs of sounds those that cost little; the others take seconds a clip.
SOUND_SCORES = ("log-mel_db", "SI-SDR_db")
# Packages whose versions may change a number.
PACKAGES = ("numpy", "jax", "av", "pillow", "opencv-python-headless", "onnxruntime")
LOGGED_EVERY = 50
# Clips that cannot be read whose names and reasons the text has; JSON and page have all.
NAMED = 10
# Of the reference's clips that are kept for their pairs; others are read again.
KEPT_BYTES = 2**30
Vectors = Cache | Once
# Fields of clips -> what brings them.
BROUGHT_BY = {"ids": "--tokenizer"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a score is made with.

    Attributes:
      networks: feature networks.
      lacking: what was not loaded -> why.
      extra: metrics of pairs besides the registered ones.
      tokenizer: of codebook use and collapse; None leaves them out.
      chosen: names of the metrics; () for all.
      pairs: whether clips of one name belong together.
    """

    networks: Sequence[Features]
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: Sequence[Metric] = ()
    tokenizer: VideoTokenizer | None = None
    chosen: Sequence[str] = ()
    pairs: bool = False

    def tables(self) -> dict[str, list[Metric]]:
        """Table -> its metrics that were asked for."""
        every = {
            SETS: metrics.select(SETS)[0] + [m for n in self.networks for m in metrics.of_features(n, SETS)],
            CLIPS: metrics.select(CLIPS)[0] + [m for n in self.networks for m in metrics.of_features(n, CLIPS)],
            PAIRS: [*metrics.select(PAIRS)[0], *self.extra],
            SOUNDS: metrics.select(SOUNDS, SOUND_SCORES)[0],
            CODES: metrics.select(CODES)[0],
        }
        return {name: [m for m in found if not self.chosen or m.name in self.chosen] for name, found in every.items()}

    @functools.cached_property
    def used(self) -> list[Features]:
        """The networks whose vectors these metrics need."""
        needs = {need for found in self.tables().values() for m in found for need in m.needs}
        return [network for network in self.networks if field_of(network.prefix) in needs]


# ------------------------------------------------------------------------------------- measuring


@dataclasses.dataclass
class Pass:
    """One pass over both sets: rows of `metric.walk`, which are (table, side)."""

    submission: Clips
    reference: Clips
    setup: Setup
    cache: Vectors
    # Stem of a clip of the reference -> the clip, without its media beyond `KEPT_BYTES`.
    known: dict[str, Item] = dataclasses.field(default_factory=dict)
    kept_bytes: int = 0
    pairs: int = 0
    with_sound: dict[str, int] = dataclasses.field(default_factory=dict)

    def run(self) -> dict[Any, Found]:
        tables = self.setup.tables()
        rows: dict[Any, list[Metric]] = {(SETS, ""): tables[SETS]}
        rows |= {(table, side): tables[table] for table in (CLIPS, CODES) for side in (SUBMISSION, REFERENCE)}
        rows |= {(table, ""): tables[table] for table in (PAIRS, SOUNDS)}
        return metric.walk(self._steps(), rows)

    def _steps(self) -> Iterator[Mapping[Any, Batch]]:
        # The reference first: its texts and pairs are known when the submission is read.
        for side, clips in ((REFERENCE, self.reference), (SUBMISSION, self.submission)):
            for number, item in enumerate(clips):
                if not number % LOGGED_EVERY:
                    _LOG.info("%s: clip %d of %d", side, number, len(clips))
                yield self._step(side, item)

    def _step(self, side: str, item: Item) -> dict[Any, Batch]:
        if side == REFERENCE and self.setup.pairs:
            self._keep(item)
        partner = self.known.get(item.stem) if side == SUBMISSION else None
        if partner and not item.caption:
            item = dataclasses.replace(item, caption=partner.caption)
        self.with_sound[side] = self.with_sound.get(side, 0) + (item.sound is not None)
        shared = {PLACES: [item.place], GROUPS: [item.group]}
        found = {field_of(n.prefix): vectors for n in self.setup.used if (vectors := self._vectors(n, item))}
        rate_hz = self.submission.clip.rate_hz
        own = {"caption": [item.caption], "video": item.video[None], "sound": [item.sound], "rate_hz": rate_hz}
        if self.setup.tokenizer:
            own |= {"ids": self.setup.tokenizer.encode(item.video[None])}
        step: dict[Any, Batch] = {
            (SETS, ""): shared | found | {SIDE: side, "caption": [item.caption]},
            (CLIPS, side): shared | found | own,
        }
        if self.setup.tokenizer:
            step[CODES, side] = {"ids": own["ids"], "codes": 2**self.setup.tokenizer.spec.bits}
        return step | (self._pair(item, self._whole(partner), shared) if partner else {})

    def _keep(self, item: Item) -> None:
        self.kept_bytes += item.video.nbytes
        fits = self.kept_bytes <= KEPT_BYTES
        self.known.setdefault(item.stem, item if fits else dataclasses.replace(item, video=None, sound=None))

    def _whole(self, item: Item) -> Item:
        return item if item.video is not None else self.reference.some(item.place)[0]

    def _vectors(self, network: Features, item: Item) -> list[np.ndarray] | None:
        found = self.cache(network, item)
        return None if found is None else [found]

    def _pair(self, item: Item, real: Item, shared: Batch) -> dict[Any, Batch]:
        self.pairs += 1
        step: dict[Any, Batch] = {(PAIRS, ""): {**shared, "truth": real.video[None], "other": item.video[None]}}
        if item.sound is not None and real.sound is not None:
            truth, other = ([to_float(x)] for x in (real.sound, item.sound))
            step[SOUNDS, ""] = {**shared, "truth": truth, "other": other, "defined": {}}
        return step


# --------------------------------------------------------------------------------------- the record


def evaluate(submission: Clips, reference: Clips, setup: Setup, cache: Vectors, done: Sequence[str]) -> dict[str, Any]:
    """Scores a set; returns what `scores.json` holds (`record.content`).

    The tables are `sets` (both compared), `clips` (each alone), `pairs` and `sounds` (clips of one name) and `codes`.
    """
    one = Pass(submission, reference, setup, cache)
    found = one.run()
    measured, skipped = {}, dict(setup.lacking)
    for name, make in ((SETS, _compared), (CLIPS, _beside), (CODES, _beside), (PAIRS, _alone), (SOUNDS, _alone)):
        rows, why = make(name, found)
        skipped |= why
        if rows:
            used = [m for m in setup.tables()[name] if m.name in {row["metric"] for row in rows}]
            measured[name] = Table(rows=rows, metrics=used, notes=_notes(used))
    if not one.pairs:
        asked = "no clip of the submission has the name of one of the reference"
        skipped["pairs"] = asked if setup.pairs else "where clips of one name belong together, give --pairs"
    return record.content(_subject(one, done), measured, skipped)


def _notes(used: Sequence[Metric]) -> list[str]:
    """Each note after the names of its metrics."""
    names: dict[str, list[str]] = {}
    for each in used:
        if each.note:
            names.setdefault(each.note, []).append(each.name)
    return [f"{', '.join(found)}: {note}" for note, found in names.items()]


def _subject(one: Pass, done: Sequence[str]) -> dict[str, Any]:
    clip = one.submission.clip
    form = {"frames": clip.frames, "rate_hz": clip.rate_hz, "height": clip.height, "width": clip.width}
    sides = {SUBMISSION: one.submission, REFERENCE: one.reference}
    return {
        **{
            side: clips.manifest | {"clips": len(clips) - len(clips.unreadable), "sound": one.with_sound.get(side, 0)}
            for side, clips in sides.items()
        },
        "pairs": one.pairs,
        "clip": form | {"crop": "about the centre", "resize": "bicubic, antialiased", "range": [0, 255]},
        "fitted": list(done),
        "networks": {n.name: n.manifest for n in one.setup.used},
        "tokenizer": one.setup.tokenizer.fingerprint if one.setup.tokenizer else None,
        "versions": installed(PACKAGES),
    }


def _bounds(summary: Summary) -> dict[str, Any]:
    return {"value": summary.value, "from": summary.low, "to": summary.high}


def _compared(name: str, found: Mapping[Any, Found]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each metric of both sets."""
    rows, skipped = [], {}
    for each in found.get((name, ""), {}).values():
        summary = each.summary
        if summary.value is None:
            skipped[each.metric.name] = _lacks(each, summary)
            continue
        rows.append(
            {
                "metric": each.metric.name,
                **_bounds(summary),
                "better": each.metric.better,
                "clips": summary.n,
                "of reference": each.state.set_of(REFERENCE).clips,
                **_chance(each),
            }
        )
    return rows, skipped


def _chance(each: Measured) -> dict[str, Any]:
    """Of recall: what random ranks reach, and the clips of the reference by the same maps."""
    if not each.metric.name.startswith("text_recall"):
        return {}
    at = int(each.metric.name.rsplit("_", 1)[1])
    real = each.state.set_of(REFERENCE)
    beside = real if each.metric.name.startswith(recall.AMONG_ALL) else None
    return {
        "chance": recall.chance(each.state.set_of(SUBMISSION), at, beside),
        "reference reaches": each.metric.finish(real, real).value,
    }


def _beside(name: str, found: Mapping[Any, Found]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each metric of one set, with the same of the reference."""
    rows, skipped = [], {}
    for key, each in found.get((name, SUBMISSION), {}).items():
        summary, real = each.summary, found[name, REFERENCE][key].summary
        if summary.value is None:
            skipped[key] = _lacks(each, summary)
            continue
        theirs = {f"reference {part}": value for part, value in _bounds(real).items()}
        rows.append({"metric": key, **_bounds(summary), **theirs, "better": each.metric.better, "clips": summary.n})
    return rows, skipped


def _alone(name: str, found: Mapping[Any, Found]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each metric of pairs."""
    rows = [
        {"metric": key, **_bounds(each.summary), "better": each.metric.better, "pairs": each.summary.n}
        for key, each in found.get((name, ""), {}).items()
        if each.summary.value is not None
    ]
    return rows, {}


def _lacks(each: Measured, summary: Summary) -> str:
    """The reason that there is no value."""
    if summary.why:
        return summary.why
    if each.state is not None:
        return "no clip has what it measures"
    needs = (BROUGHT_BY.get(need, need.replace("_", " ")) for need in each.metric.needs)
    return f"it needs {', '.join(needs)}"


def summary(result: Mapping[str, Any]) -> str:
    """The result as text."""
    heading = "\n".join(_heading(name, result[name]) for name in (SUBMISSION, REFERENCE))
    return "\n".join([record.text(result, heading, notes=True), *result["fitted"]])


def _heading(name: str, side: Mapping[str, Any]) -> str:
    """How many clips a side has, and those of it that cannot be read."""
    unreadable = [f"  {key}: {why}" for key, why in side["unreadable"].items()]
    counted = f", {len(unreadable)} cannot be read" if unreadable else ""
    more = [f"  and {len(unreadable) - NAMED} others"] if len(unreadable) > NAMED else []
    return "\n".join([f"{name}: {side['clips']} clips of {side['path']}{counted}", *unreadable[:NAMED], *more])
