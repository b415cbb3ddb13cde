"""Networks of one's own, such as I3D, C3D, CLIP or VGGish: an ONNX file and a small JSON file that says what it reads.

    {"name": "i3d", "medium": "video", "onnx": "i3d.onnx", "layout": "NCTHW", "size": [224, 224], "frames": 16,
     "rate_hz": 25, "range": [-1, 1], "resize": "bilinear", "output": "features"}

| key | meaning | default |
|---|---|---|
| `name` | of its metrics: `i3d_frechet`; lower case | required |
| `medium` | `frames` (one by one), `video` (windows of frames) or `sound` | required |
| `onnx` | the network, beside the JSON file; one input, float32 | required |
| `layout` | dims of its input: `NCHW`, `NHWC`; `NCTHW`, `NTHWC`, `NTCHW`; `NS` | the first of its medium |
| `size` | height and width in pixels | required, but for sound |
| `range` | what 0 and 255 (or -1 and 1 of a sound) become | [0, 1], of sound [-1, 1] |
| `mean`, `deviation` | of each channel, taken off and divided by after that | none |
| `resize` | `bilinear`, `bicubic` or `lanczos`, antialiased, of whole frames | `bicubic` |
| `frames` | of a window; windows follow each other, a remainder is left out | all frames |
| `rate_hz` | of the frames; the nearest ones of the clip are taken | the clip's |
| `every` | with `frames`: every so many frames | 1 |
| `samples` | of a window of sound at 16 kHz | the whole sound |
| `output` | the name of an output [N, D], or [N, ...] that is averaged over what follows D | the first |

The networks that the field's numbers are made with are not free to ship; a number is comparable with a published one
only if file, size, range, resize filter, rate and number of clips are the same.

Shape suffixes: K windows, D width, T frames, H height, W width, C channels, S samples.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from poet.conditioning import networks
from poet.evaluation.features import base
from poet.evaluation.features.base import SOUND_RATE_HZ, Features
from poet.spec import UserError

LAYOUTS = {"frames": ("NCHW", "NHWC"), "video": ("NCTHW", "NTHWC", "NTCHW"), "sound": ("NS",)}
RESIZES = ("bicubic", "bilinear", "lanczos")
_NAME = re.compile(r"[a-z][a-z0-9]*")
# Names of published metrics, which only their own protocols give.
_TAKEN = ("fid", "fvd", "fad", "kid", "kvd", "kad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reads:
    """The JSON file; see the head of this module."""

    name: str
    medium: str
    onnx: str
    layout: str = ""
    size: tuple[int, int] = (0, 0)
    range: tuple[float, float] = (0.0, 0.0)
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    resize: str = "bicubic"
    frames: int = 0
    rate_hz: float = 0.0
    every: int = 1
    samples: int = 0
    output: str = ""


def read(path: str | Path) -> Reads:
    """The JSON file; UserError names what is wrong in it."""
    try:
        fields = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the feature network {path} cannot be read as JSON: {error}") from None
    known = {field.name for field in dataclasses.fields(Reads)}
    if not isinstance(fields, dict) or set(fields) - known:
        extra = ", ".join(sorted(set(fields) - known)) if isinstance(fields, dict) else "no object"
        raise UserError(f"{path}: {extra}: the keys are {', '.join(sorted(known))}")
    try:
        found = Reads(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:
        raise UserError(f"{path}: name, medium and onnx are required ({error})") from None
    return _checked(path, found)


def _checked(path: str | Path, found: Reads) -> Reads:
    """The same with the defaults of its medium."""

    def refuse(what: str) -> None:
        raise UserError(f"{path}: {what}")

    if not _NAME.fullmatch(str(found.name)) or found.name in _TAKEN:
        refuse(f"name = {found.name!r}: letters in lower case and digits, such as i3d; not {', '.join(_TAKEN)}")
    if found.medium not in LAYOUTS:
        refuse(f"medium = {found.medium!r}: one of {', '.join(LAYOUTS)}")
    layout = found.layout or LAYOUTS[found.medium][0]
    if layout not in LAYOUTS[found.medium]:
        refuse(f"layout = {layout!r}: of {found.medium} one of {', '.join(LAYOUTS[found.medium])}")
    if found.medium != "sound" and (len(found.size) != 2 or min(found.size) < 1):
        refuse(f"size = {list(found.size)}: height and width in pixels, such as [224, 224]")
    if found.resize not in RESIZES:
        refuse(f"resize = {found.resize!r}: one of {', '.join(RESIZES)}")
    if len(found.range) != 2 or len(found.mean) not in (0, 3) or len(found.deviation) not in (0, 3):
        refuse("range takes two numbers; mean and deviation take three each")
    if min(found.frames, found.samples, found.rate_hz) < 0 or found.every < 1:
        refuse("frames, samples and rate_hz are at least 0, every at least 1")
    standard = (-1.0, 1.0) if found.medium == "sound" else (0.0, 1.0)
    chosen = found.range if found.range[0] != found.range[1] else standard
    return dataclasses.replace(found, layout=layout, range=chosen)


def load(path: str | Path, rate_hz: float) -> Features:
    """A network by its JSON file, for clips of `rate_hz` frames a second.

    Raises:
      UserError: the JSON or the ONNX file is not as the head of this module says.
    """
    reads = read(path)
    file = Path(path).expanduser().parent / reads.onnx
    session = networks.open_session(str(file), str(file)) if file.is_file() else None
    if session is None:
        raise UserError(f"{path}: there is no network {file}")
    names = [output.name for output in session.get_outputs()]
    output = reads.output or names[0]
    if output not in names or len(session.get_inputs()) != 1:
        inputs = len(session.get_inputs())
        raise UserError(f"{file} has {inputs} inputs and the outputs {', '.join(names)}: one input, and one of these")
    run = functools.partial(_run, session, reads, output, rate_hz)
    return Features(
        name=reads.name,
        prefix=reads.name,
        medium=reads.medium,
        width=_width(run, reads, rate_hz, str(file)),
        fingerprint=networks.file_hash(str(file)),
        reads={k: v for k, v in dataclasses.asdict(reads).items() if v and k not in ("name", "medium")}
        | {"clip_rate_hz": rate_hz},
        run=run,
    )


def _width(run: Any, reads: Reads, rate_hz: float, file: str) -> int:
    """D, by a run on black or silence."""
    frames = _stride(reads, rate_hz) * (reads.frames or 16)
    probe = np.zeros((frames, 32, 32, 3), np.uint8)
    sound = np.zeros(reads.samples or SOUND_RATE_HZ, np.int16)
    try:
        return run(sound if reads.medium == "sound" else probe).shape[1]
    except UserError:
        raise
    except Exception as error:  # onnxruntime's own kinds, for shapes that do not fit.
        raise UserError(f"{file} does not run on what its JSON file says: {error}") from None


def _run(session: Any, reads: Reads, output: str, rate_hz: float, media: np.ndarray) -> np.ndarray:
    """float32 [K, D] of a clip."""
    inputs = _sounds(reads, media) if reads.medium == "sound" else _pictures(reads, rate_hz, media)
    name = session.get_inputs()[0].name
    found = [session.run([output], {name: each[None]})[0] for each in inputs]
    rows = np.concatenate(found)
    return rows.reshape(*rows.shape[:2], -1).mean(axis=2)


def _stride(reads: Reads, rate_hz: float) -> int:
    """About how many frames of the clip a frame of the network stands for."""
    return max(1, round(reads.every * (rate_hz / reads.rate_hz if reads.rate_hz else 1)))


def _sounds(reads: Reads, sound_S: np.ndarray) -> np.ndarray:
    """float32 [K, samples]."""
    size = reads.samples or len(sound_S)
    padded = np.pad(sound_S, (0, max(size - len(sound_S), 0)))
    windows = padded[: len(padded) // size * size].reshape(-1, size).astype(np.float32) / 32768
    low, high = reads.range
    return ((windows + 1) / 2 * (high - low) + low).astype(np.float32)


def _pictures(reads: Reads, rate_hz: float, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 of frames, or of windows of frames, in the layout of the network."""
    frames = _scaled(
        reads, base.resized(video_TxHxWx3[_times(reads, rate_hz, len(video_TxHxWx3))], *reads.size, reads.resize)
    )
    if reads.medium == "frames":
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)) if reads.layout == "NCHW" else frames
    size = reads.frames or len(frames)
    if len(frames) < size:
        raise UserError(f"{reads.name} reads windows of {size} frames, a clip has {len(frames)}: give longer clips")
    windows = frames[: len(frames) // size * size].reshape(-1, size, *frames.shape[1:])
    order = {"NCTHW": (0, 4, 1, 2, 3), "NTHWC": (0, 1, 2, 3, 4), "NTCHW": (0, 1, 4, 2, 3)}[reads.layout]
    return np.ascontiguousarray(windows.transpose(order))


def _times(reads: Reads, rate_hz: float, frames: int) -> np.ndarray:
    """The frames of the clip that are nearest to the times of the network's."""
    step = reads.every * (rate_hz / reads.rate_hz if reads.rate_hz else 1)
    count = int(np.floor((frames - 1) / step + 1e-9)) + 1
    return np.minimum(np.rint(np.arange(count) * step).astype(int), frames - 1)


def _scaled(reads: Reads, frames_TxHxWx3: np.ndarray) -> np.ndarray:
    low, high = reads.range
    found = frames_TxHxWx3.astype(np.float32) / 255 * np.float32(high - low) + np.float32(low)
    mean, deviation = np.float32(reads.mean or (0, 0, 0)), np.float32(reads.deviation or (1, 1, 1))
    return (found - mean) / deviation
