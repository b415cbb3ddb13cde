"""`poet tokenizer-eval`: scores of a video tokenizer on sets of clips, beside codecs at its rate.

The tokenizer's rate is that of its codes written with a fixed number of bits each, as a language
model reads them; no entropy coder is laid over them.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from poet import conditioning, media
from poet.conditioning import CONDITIONS
from poet.evaluation import metric, record
from poet.evaluation.codecs import video as codec
from poet.evaluation.metric import Metric
from poet.evaluation.metrics import codes, derived, pixels, select
from poet.evaluation.metrics import perceptual as distances
from poet.evaluation.metrics.round_trips import NOTE as ROUND_TRIP_NOTE
from poet.evaluation.metrics.round_trips import round_trips
from poet.media import bitstreams
from poet.spec import ConditioningSpec, UserError
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.perceptual import Perceptual

_LOG = logging.getLogger(__name__)

RESULT_FILE = "tokenizer_scores.json"
TOKENIZER = "tokenizer"
CLIPS_SHOWN = 3
STRIP_EVERY = 4
LABEL_WIDTH, LABEL_MARGIN = 72, 4

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One rendering of a set.

    Attributes:
      name: 'tokenizer' or a codec.
      video_NxTxHxWx3: uint8.
      row: what is known of it besides scores; begins with `codec` and `bits_per_pixel`.
      detail: what the JSON says of it besides the row.
    """

    name: str
    video_NxTxHxWx3: np.ndarray
    row: dict[str, Any]
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)


def evaluate(
    tokenizer: VideoTokenizer,
    sets: Mapping[str, np.ndarray],
    out: pathlib.Path,
    *,
    perceptual: Perceptual | None,
    comparators: Sequence[str] = ("x264", "x265"),
    rate_hz: float = 8.0,
    preset: str = "slow",
    skipped: Mapping[str, str] | None = None,
    conditions: ConditioningSpec | None = None,
    depths: Mapping[str, Sequence[np.ndarray | None]] | None = None,
) -> dict[str, Any]:
    """Scores a tokenizer on sets of clips, each uint8 (N, T, H, W, 3), and codecs beside it.

    Writes OUT/tokenizer_scores.json and a picture OUT/SET.png per set, and returns what the JSON holds
    (`record.content`): the tables of `NOTES`, and `sets`, what else is known of each; `summary` makes text of it.
    Codecs spend at least the tokenizer's bits per pixel, in every way of `codec.codings`.

    Args:
      perceptual: the distance shown beside PSNR and SSIM; None leaves it out.
      comparators: of `bitstreams.STREAM_CODECS`; () leaves codecs out.
      rate_hz: frame rate that codecs are told.  preset: of the codecs.
      skipped: sets that could not be opened -> why; they are passed on to the result.
      conditions: how the conditions are made whose round trips are scored; None leaves them out.
      depths: set -> distances (T, h, w) of its clips, which structure is made from.

    Raises:
      UserError: no set, an unknown codec, or clips that the tokenizer, SSIM or a codec cannot take.
    """
    _check(sets, comparators, skipped or {})
    out.mkdir(parents=True, exist_ok=True)
    codings = codec.codings(comparators, preset)
    metrics = {table: select(table)[0] for table in NOTES}
    if perceptual:
        metrics["renderings"].append(distances.distance(perceptual))
    scored, details = {}, {}
    for name, clips in sets.items():
        _LOG.info("scoring %d clips of set %s", len(clips), name)
        ids = tokenizer.encode(clips)
        candidates = _candidates(tokenizer, clips, ids, codings, rate_hz)
        rounds = round_trips(tokenizer, clips, ids, candidates[0].video_NxTxHxWx3)
        scored[name] = {
            "renderings": _renderings(clips, candidates, metrics["renderings"]),
            "codes": [codes.statistics(ids, 2**tokenizer.spec.bits)],
            "round_trips": [metric.columns(metric.measure(rounds, metrics["round_trips"]))],
            "conditions": condition_rows(tokenizer, clips, conditions, (depths or {}).get(name, ())),
        }
        details[name] = _details(clips, candidates)
        _write_picture(out / f"{name}.png", clips, scored[name]["renderings"], candidates, perceptual)
    subject = {"fingerprint": tokenizer.fingerprint, "distance": perceptual.label if perceptual else None}
    tables = record.of_sets(scored, metrics, NOTES)
    result = record.content(subject, tables, skipped or {}, sets=details)
    record.write(out / RESULT_FILE, result)
    return result


# Table -> how to read it.
NOTES = {
    "renderings": (
        pixels.NOTE,
        "PSNR of mean MSE is that of the squared error averaged over all clips first. ± is the "
        "standard error over clips. Other distances are means over frames 0, "
        f"{distances.EVERY}, {2 * distances.EVERY}, ...",
        "A codec's rate counts the bytes of its pictures alone: no container, no parameter sets. It "
        "is the lowest found that is not below the tokenizer's. 'per clip': each clip is a stream of "
        "its own with the tokenizer's bits; 'one stream': all clips are one stream of one rate factor.",
    ),
    "codes": (codes.USAGE_NOTE,),
    "round_trips": (ROUND_TRIP_NOTE,),
    "conditions": (derived.NOTE,),
}


def summary(result: Mapping[str, Any]) -> str:
    """The result as text: its tables, how to read them, and which sets were skipped."""
    return record.text(result, notes=True)


# ---------------------------------------------------------------------------------------- one set


def _check(sets: Mapping[str, np.ndarray], comparators: Sequence[str], skipped: Mapping[str, str]) -> None:
    if not sets:
        raise UserError(f"no set of clips to score on: {'; '.join(skipped.values())}")
    for name in comparators:
        if name not in bitstreams.STREAM_CODECS:
            raise UserError(f"no codec {name!r}; there are {', '.join(bitstreams.STREAM_CODECS)}")
    for name, clips in sets.items():
        _check_set(name, clips)


def _check_set(name: str, clips: np.ndarray) -> None:
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or not len(clips):
        raise UserError(
            f"set {name!r} has dtype {clips.dtype} and shape {clips.shape}: expected uint8 "
            "(clips, frames, height, width, 3)"
        )
    if min(clips.shape[2:4]) < pixels.SSIM_WINDOW:
        raise UserError(
            f"set {name!r} has clips of {clips.shape[2]}x{clips.shape[3]} pixels: SSIM needs sides "
            f"of at least {pixels.SSIM_WINDOW}"
        )


def _candidates(
    tokenizer: VideoTokenizer,
    clips_NxTxHxWx3: np.ndarray,
    ids_Nxtxhxw: np.ndarray,
    codings: Sequence[codec.Coding],
    rate_hz: float,
) -> list[Candidate]:
    """What the tokenizer and each coding make of a set."""
    bits = ids_Nxtxhxw[0].size * tokenizer.spec.bits
    ours = {"codec": TOKENIZER, "bits_per_pixel": bits / math.prod(clips_NxTxHxWx3.shape[1:4])}
    rebuilt = Candidate(name=TOKENIZER, video_NxTxHxWx3=tokenizer.decode(ids_Nxtxhxw), row=ours)
    return [rebuilt, *(_coded(clips_NxTxHxWx3, coding, bits, rate_hz) for coding in codings)]


def _renderings(
    clips_NxTxHxWx3: np.ndarray, candidates: Sequence[Candidate], metrics: Sequence[Metric]
) -> list[Row]:
    batches = {
        i: {"truth": clips_NxTxHxWx3, "other": candidate.video_NxTxHxWx3} for i, candidate in enumerate(candidates)
    }
    found = metric.walk([batches], metrics)
    return [{**candidate.row, **metric.columns(found[i])} for i, candidate in enumerate(candidates)]


def _details(clips_NxTxHxWx3: np.ndarray, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "clips": len(clips_NxTxHxWx3),
        "shape": list(clips_NxTxHxWx3.shape[1:4]),
        "codecs": {c.row["codec"]: c.detail for c in candidates if c.detail},
    }


def _coded(
    clips_NxTxHxWx3: np.ndarray, coding: codec.Coding, bits_per_clip: int, rate_hz: float
) -> Candidate:
    coded = codec.code(clips_NxTxHxWx3, coding, bits_per_clip, rate_hz)
    pixels = math.prod(clips_NxTxHxWx3.shape[:4])
    middle = f"{float(np.median(coded.crfs)):.3f}"
    height, width = clips_NxTxHxWx3.shape[2:4]
    return Candidate(
        name=coding.codec,
        video_NxTxHxWx3=coded.video_NxTxHxWx3,
        row={"codec": coding.label, "bits_per_pixel": 8 * coded.slice_bytes / pixels},
        detail={
            "command": coding.command(height, width, rate_hz, middle),
            "crf": [min(coded.crfs), float(middle), max(coded.crfs)],
            "packets_bits_per_pixel": 8 * coded.stream_bytes / pixels,
        },
    )


# ------------------------------------------------------------------------------------- conditions


def condition_rows(
    tokenizer: VideoTokenizer,
    clips_NxTxHxWx3: np.ndarray,
    spec: ConditioningSpec | None,
    depths: Sequence[np.ndarray | None] = (),
    names: Sequence[str] = (),
) -> list[Row]:
    """What a tokenizer keeps of each condition that can be made of these uint8 clips; () without a spec.

    Args:
      depths: distances (T, h, w) of each clip; with () or a clip that has none, structure is made where
        `spec.depth` needs none.
      names: of the conditions, () for all; what is drawn for a clip depends on its place in the set.
    """
    if spec is None:
        return []
    whole = len(depths) == len(clips_NxTxHxWx3) and all(depth is not None for depth in depths)
    possible = conditioning.possible(spec, clips_NxTxHxWx3.shape[1], has_depth=whole)
    ids, metrics = tokenizer.encode(clips_NxTxHxWx3), select("conditions")[0]
    rows = []
    for name in (name for name in possible if name in (names or possible)):
        made = [
            conditioning.make(
                name, clip, spec, key=str(n), depth=depths[n] if whole else None, factor=tokenizer.spec.factor
            )
            for n, clip in enumerate(clips_NxTxHxWx3)
        ]
        fields = _condition_fields(name, tokenizer, ids, made, spec)
        rows.append({"condition": name, **metric.columns(metric.measure(fields, metrics))})
    return rows


def _condition_fields(
    name: str,
    tokenizer: VideoTokenizer,
    ids_Nxtxhxw: np.ndarray,
    made: Sequence[conditioning.Made],
    spec: ConditioningSpec,
) -> metric.Batch:
    """See `poet.evaluation.metrics.derived`."""
    shown = np.stack([m.video for m in made])
    kept = tokenizer.encode(shown)
    fields = {"truth": shown, "other": tokenizer.decode(kept)}
    if CONDITIONS[name].masks:
        fields |= {"cells": np.stack([m.cells for m in made]), "ids_same": kept == ids_Nxtxhxw}
    return fields | ({"flow_scale": spec.flow_scale} if name == "structure" else {})


# --------------------------------------------------------------------------------------- pictures


def _write_picture(
    path: pathlib.Path,
    clips_NxTxHxWx3: np.ndarray,
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    perceptual: Perceptual | None,
) -> None:
    """The originals, the tokenizer and each codec's best rendering: the least distance, or the best PSNR."""
    best: dict[str, tuple[float, np.ndarray]] = {}
    for row, candidate in zip(rows, candidates, strict=True):
        score = -row[perceptual.label] if perceptual else row["psnr_db"]
        if candidate.name not in best or score > best[candidate.name][0]:
            best[candidate.name] = score, candidate.video_NxTxHxWx3
    shown = {name: video for name, (_, video) in best.items()}
    media.write_png_strip(path, _picture(clips_NxTxHxWx3, shown)[None])


def _picture(clips_NxTxHxWx3: np.ndarray, shown: Mapping[str, np.ndarray]) -> np.ndarray:
    """Strips of the first clips, uint8 (rows, width, 3): each original above its renderings."""
    lines = []
    for index in range(min(CLIPS_SHOWN, len(clips_NxTxHxWx3))):
        for name, videos in {"original": clips_NxTxHxWx3, **shown}.items():
            strip = media.frame_strip(videos[index], STRIP_EVERY)
            lines.append(np.concatenate([_label(name, len(strip)), strip], axis=1))
    return np.concatenate(lines)


def _label(text: str, height: int) -> np.ndarray:
    image = Image.new("RGB", (LABEL_WIDTH, height), "white")
    ImageDraw.Draw(image).text((LABEL_MARGIN, LABEL_MARGIN), text, fill="black")
    return np.asarray(image)
