"""`poet tokenizer-eval`: scores of a video tokenizer on sets of clips, beside codecs at its rate.

The tokenizer's rate is that of its codes written with a fixed number of bits each, as a language
model reads them; no entropy coder is laid over them.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from poet import conditioning, media
from poet.conditioning import CONDITIONS
from poet.evaluation import metric, tokenizers
from poet.evaluation.codecs import video as codec
from poet.evaluation.metrics import codes, derived, pixels, select
from poet.evaluation.metrics import perceptual as distances
from poet.evaluation.metrics.round_trips import NOTE as ROUND_TRIP_NOTE
from poet.evaluation.metrics.round_trips import round_trips
from poet.evaluation.tokenizers import CLIPS_SHOWN, Rendering, Row
from poet.media import bitstreams
from poet.spec import ConditioningSpec, UserError
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.perceptual import Perceptual

TOKENIZER = "tokenizer"
STRIP_EVERY = 4
LABEL_WIDTH, LABEL_MARGIN = 72, 4


def evaluate(
    tokenizer: VideoTokenizer,
    sets: Mapping[str, np.ndarray],
    out: Path,
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
    (`record.content`): the tables of `NOTES`, and `sets`, their details; `tokenizers.summary` renders it as text.
    Codecs spend at least the tokenizer's bits per pixel, in every way of `codec.codings`.

    Args:
      perceptual: the distance beside PSNR and SSIM; None skips it.
      comparators: of `bitstreams.STREAM_CODECS`; () leaves codecs out.
      rate_hz: frame rate for the codecs.  preset: of the codecs.
      skipped: sets that could not be opened -> why; they are passed on to the result.
      conditions: how the conditions are made whose round trips are scored; None leaves them out.
      depths: set -> distances (T, h, w) of its clips, which structure is made from.

    Raises:
      UserError: no set, an unknown codec, or clips that the tokenizer, SSIM or a codec cannot take.
    """
    skipped = skipped or {}
    _check(sets, comparators, skipped)
    codings, metrics = codec.codings(comparators, preset), {table: select(table)[0] for table in NOTES}
    metrics["renderings"] += [distances.distance(perceptual)] if perceptual else []
    scored, details = {}, {}
    for name, clips in tokenizers.each(sets, "clips"):
        ids = tokenizer.encode(clips)
        bits = ids[0].size * tokenizer.spec.bits
        ours = {"codec": TOKENIZER, "bits_per_pixel": bits / math.prod(clips.shape[1:4])}
        rebuilt = Rendering(name=TOKENIZER, media_N=tokenizer.decode(ids), row=ours)
        made = [rebuilt, *(_coded(clips, coding, bits, rate_hz) for coding in codings)]
        rounds = round_trips(tokenizer, clips, ids, rebuilt.media_N)
        rows = [r.measured({"truth": clips, "other": r.media_N}, metrics["renderings"])[0] for r in made]
        scored[name] = {
            "renderings": rows,
            "codes": [codes.statistics(ids, 2**tokenizer.spec.bits)],
            "round_trips": [metric.columns(metric.measure(rounds, metrics["round_trips"]))],
            "conditions": condition_rows(tokenizer, clips, conditions, (depths or {}).get(name, ())),
        }
        coded = {r.label: r.detail for r in made if r.detail}
        details[name] = {"clips": len(clips), "shape": list(clips.shape[1:4]), "codecs": coded}
        _write_picture(out / f"{name}.png", clips, rows, made, perceptual.label if perceptual else "")
    subject = {"fingerprint": tokenizer.fingerprint, "distance": perceptual.label if perceptual else None}
    return tokenizers.write(out, subject, tokenizers.tables(scored, metrics, NOTES), skipped, sets=details)


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


# ---------------------------------------------------------------------------------------- one set


def _check(sets: Mapping[str, np.ndarray], comparators: Sequence[str], skipped: Mapping[str, str]) -> None:
    tokenizers.check_clips(sets, skipped)
    for name in comparators:
        if name not in bitstreams.STREAM_CODECS:
            raise UserError(f"no codec {name!r}; there are {', '.join(bitstreams.STREAM_CODECS)}")


def _coded(clips_NxTxHxWx3: np.ndarray, coding: codec.Coding, bits_per_clip: int, rate_hz: float) -> Rendering:
    coded = codec.code(clips_NxTxHxWx3, coding, bits_per_clip, rate_hz)
    pixels, middle = math.prod(clips_NxTxHxWx3.shape[:4]), f"{float(np.median(coded.crfs)):.3f}"
    return Rendering(
        name=coding.codec,
        media_N=coded.video_NxTxHxWx3,
        row={"codec": coding.label, "bits_per_pixel": 8 * coded.slice_bytes / pixels},
        detail={
            "command": coding.command(*clips_NxTxHxWx3.shape[2:4], rate_hz, middle),
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
    """The rows of each condition that can be derived from these uint8 clips; () without a spec.

    Args:
      depths: distances (T, h, w) of each clip; with () or a clip that has none, structure is made where
        `spec.depth` needs none.
      names: of the conditions, () for all; the random choices of a clip depend on its index in the set.
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
        fields = _condition_fields(name, tokenizer, ids, made, spec.flow_scale)
        rows.append({"condition": name, **metric.columns(metric.measure(fields, metrics))})
    return rows


def _condition_fields(
    name: str, tokenizer: VideoTokenizer, ids_Nxtxhxw: np.ndarray, made: Sequence[conditioning.Made], flow_scale: float
) -> metric.Batch:
    """See `poet.evaluation.metrics.derived`."""
    shown = np.stack([m.video for m in made])
    kept = tokenizer.encode(shown)
    fields = {"truth": shown, "other": tokenizer.decode(kept)}
    if CONDITIONS[name].masks:
        fields |= {"cells": np.stack([m.cells for m in made]), "ids_same": kept == ids_Nxtxhxw}
    return fields | ({"flow_scale": flow_scale} if name == "structure" else {})


# --------------------------------------------------------------------------------------- pictures


def _write_picture(
    path: Path, clips_NxTxHxWx3: np.ndarray, rows: Sequence[Row], made: Sequence[Rendering], distance: str
) -> None:
    """The originals, the tokenizer and each codec's best rendering: the least distance, or the best PSNR."""
    scores = [-row[distance] if distance else row["psnr_db"] for row in rows]
    places = {r.name: [i for i, other in enumerate(made) if other.name == r.name] for r in made}
    shown = {name: made[max(among, key=scores.__getitem__)].media_N for name, among in places.items()}
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
