"""`poet tokenizer-eval`: scores of a video tokenizer on sets of clips, beside codecs at its rate.

The tokenizer's rate is that of its codes written with a fixed number of bits each, as a language
model reads them; no entropy coder is laid over them.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pathlib
from typing import Any, Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from poet import media
from poet.evaluation import codec
from poet.evaluation.codes import USAGE_NOTE, usage_statistics
from poet.evaluation.derived_scores import DERIVED_NOTE, derived_scores
from poet.evaluation.image_metrics import PEAK, PSNR_CEILING_DB, SSIM_WINDOW, mean_and_error
from poet.evaluation.metrics import PSNR_NOTE, score_clips
from poet.evaluation.round_trips import ROUND_TRIP_NOTE, round_trips
from poet.evaluation.tables import format_table
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
# Distances are of every fourth frame, one of each latent of the paper: its network costs far more
# than everything else here.
DISTANCE_EVERY = 4

# Two batches of frames, uint8 (F, H, W, 3) -> distance of each pair, float (F,).
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


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

    Writes OUT/tokenizer_scores.json and a picture OUT/SET.png per set, and returns what the JSON
    holds; `summary` prints it.  Codecs spend at least the tokenizer's bits per pixel, in every way
    of `codec.codings`.

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
    if not sets:
        raise UserError(f"no set of clips to score on: {'; '.join((skipped or {}).values())}")
    for name in comparators:
        if name not in bitstreams.STREAM_CODECS:
            raise UserError(f"no codec {name!r}; there are {', '.join(bitstreams.STREAM_CODECS)}")
    for name, clips in sets.items():
        _check_set(name, clips)
    out.mkdir(parents=True, exist_ok=True)
    codings = codec.codings(comparators, preset)
    distance = None if perceptual is None else _distance_of(perceptual)
    title = None if perceptual is None else perceptual.label
    result = {
        "fingerprint": tokenizer.fingerprint,
        "distance": title,
        "notes": [PSNR_NOTE, *NOTES],
        "skipped": dict(skipped or {}),
        "sets": {},
    }
    for name, clips in sets.items():
        _LOG.info("scoring %d clips of set %s", len(clips), name)
        found, candidates = _score_set(tokenizer, clips, codings, rate_hz, title, distance)
        if conditions is not None:
            found["derived"] = derived_scores(tokenizer, clips, conditions, (depths or {}).get(name, ()))
        shown = _shown(found["rows"], candidates, title)
        media.write_png_strip(out / f"{name}.png", _picture(clips, shown)[None])
        result["sets"][name] = found
    media.write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return result


NOTES = (
    "PSNR of mean MSE is that of the squared error averaged over all clips first. ± is the "
    "standard error over clips. Other distances are means over frames 0, "
    f"{DISTANCE_EVERY}, {2 * DISTANCE_EVERY}, ...",
    "A codec's rate counts the bytes of its pictures alone: no container, no parameter sets. It "
    "is the lowest found that is not below the tokenizer's. 'per clip': each clip is a stream of "
    "its own with the tokenizer's bits; 'one stream': all clips are one stream of one rate factor.",
    USAGE_NOTE,
    ROUND_TRIP_NOTE,
    DERIVED_NOTE,
)


def summary(result: Mapping[str, Any]) -> str:
    """The result as text: its tables, how to read them, and which sets were skipped."""
    rows = [
        {"set": name, **row} for name, found in result["sets"].items() for row in found["rows"]
    ]
    codes = [{"set": name, **found["codes"]} for name, found in result["sets"].items()]
    rounds = [{"set": name, **found["round_trips"]} for name, found in result["sets"].items()]
    derived = [
        {"set": name, **row} for name, found in result["sets"].items() for row in found.get("derived", ())
    ]
    tables = [format_table(table) for table in (rows, codes, rounds, derived) if table]
    parts = [*tables, "\n".join(result["notes"])]
    parts += [f"set {name!r}: {reason}" for name, reason in result["skipped"].items()]
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------------- one set


def _check_set(name: str, clips: np.ndarray) -> None:
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or not len(clips):
        raise UserError(
            f"set {name!r} has dtype {clips.dtype} and shape {clips.shape}: expected uint8 "
            "(clips, frames, height, width, 3)"
        )
    if min(clips.shape[2:4]) < SSIM_WINDOW:
        raise UserError(
            f"set {name!r} has clips of {clips.shape[2]}x{clips.shape[3]} pixels: SSIM needs sides "
            f"of at least {SSIM_WINDOW}"
        )


def _score_set(
    tokenizer: VideoTokenizer,
    clips_NxTxHxWx3: np.ndarray,
    codings: Sequence[codec.Coding],
    rate_hz: float,
    title: str | None,
    distance: Distance | None,
) -> tuple[dict[str, Any], list[Candidate]]:
    """Rows, code statistics and codec details of one set, and the renderings themselves."""
    ids = tokenizer.encode(clips_NxTxHxWx3)
    bits = ids[0].size * tokenizer.spec.bits
    pixels = math.prod(clips_NxTxHxWx3.shape[1:4])
    ours = {"codec": TOKENIZER, "bits_per_pixel": bits / pixels}
    rebuilt = tokenizer.decode(ids)
    candidates = [Candidate(name=TOKENIZER, video_NxTxHxWx3=rebuilt, row=ours)]
    for coding in codings:
        candidates.append(_coded(clips_NxTxHxWx3, coding, bits, rate_hz))
    rows = [_row(clips_NxTxHxWx3, c, title, distance) for c in candidates]
    found = {
        "clips": len(clips_NxTxHxWx3),
        "shape": list(clips_NxTxHxWx3.shape[1:4]),
        "rows": rows,
        "codes": code_statistics(ids, tokenizer.spec.bits),
        "round_trips": round_trips(tokenizer, clips_NxTxHxWx3, ids, rebuilt),
        "codecs": {c.row["codec"]: c.detail for c in candidates if c.detail},
    }
    return found, candidates


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


def _row(
    truth_NxTxHxWx3: np.ndarray,
    candidate: Candidate,
    title: str | None,
    distance: Distance | None,
) -> dict[str, Any]:
    video = candidate.video_NxTxHxWx3
    row = {
        **candidate.row,
        **score_clips(truth_NxTxHxWx3, video).row(),
        "psnr_of_mean_MSE_db": psnr_of_mean_mse(truth_NxTxHxWx3, video),
    }
    if title and distance:
        pairs = zip(truth_NxTxHxWx3, video, strict=True)
        every = slice(None, None, DISTANCE_EVERY)
        row[title], row[f"{title}_error"] = mean_and_error(
            np.array([distance(a[every], b[every]).mean() for a, b in pairs])
        )
    return row


def psnr_of_mean_mse(truth: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of the squared error averaged over everything, capped at `PSNR_CEILING_DB`."""
    pairs = zip(truth, other, strict=True)
    mse = np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs])
    return PSNR_CEILING_DB if mse == 0 else min(10 * math.log10(PEAK**2 / mse), PSNR_CEILING_DB)


def _distance_of(perceptual: Perceptual) -> Distance:
    """`perceptual.distance` on uint8 frames, compiled once per shape."""
    compiled = jax.jit(
        lambda params, a, b: perceptual.distance(
            params, a.astype(jnp.float32) / PEAK, b.astype(jnp.float32) / PEAK
        )
    )
    return lambda a, b: np.asarray(compiled(perceptual.params, a, b))


# ------------------------------------------------------------------------------------------ codes


def code_statistics(ids: np.ndarray, bits: int) -> dict[str, Any]:
    """How well integer codes of any shape use a codebook of 2^bits: `usage_statistics`, and bits.

    `bit_balance` is 1 when every bit is on half the time and 0 when every bit is constant;
    `worst_bit_balance` is that of the worst bit.
    """
    on = (ids.reshape(-1, 1) >> np.arange(bits) & 1).mean(axis=0)
    balance = 1 - np.abs(2 * on - 1)
    return {
        **usage_statistics(ids, 2**bits),
        "bit_balance": float(balance.mean()),
        "worst_bit_balance": float(balance.min()),
    }


# --------------------------------------------------------------------------------------- pictures


def _shown(
    rows: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate], title: str | None
) -> dict[str, np.ndarray]:
    """The tokenizer and each codec's best rendering: the least distance, or the best PSNR."""
    best: dict[str, tuple[float, np.ndarray]] = {}
    for row, candidate in zip(rows, candidates, strict=True):
        score = -row[title] if title else row["psnr_db"]
        if candidate.name not in best or score > best[candidate.name][0]:
            best[candidate.name] = score, candidate.video_NxTxHxWx3
    return {name: video for name, (_, video) in best.items()}


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
