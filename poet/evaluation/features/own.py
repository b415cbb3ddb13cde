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
import re
from pathlib import Path
from typing import Any

import numpy as np

from poet.conditioning import networks
from poet.evaluation.features import base
from poet.evaluation.features.base import SOUND_RATE_HZ, Features
from poet.spec import Spec, UserError, from_dict, read_object

LAYOUTS = {"frames": ("NCHW", "NHWC"), "video": ("NCTHW", "NTHWC", "NTCHW"), "sound": ("NS",)}
RESIZES = ("bicubic", "bilinear", "lanczos")
_NAME = re.compile(r"[a-z][a-z0-9]*")
# Names of published metrics, which only their own protocols give.
_TAKEN = ("fid", "fvd", "fad", "kid", "kvd", "kad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reads(Spec):
    """The JSON file; see the head of this module."""

    name: str = ""
    medium: str = ""
    onnx: str = ""
    layout: str = ""
    size: tuple[int, ...] = ()
    range: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    resize: str = "bicubic"
    frames: int = 0
    rate_hz: float = 0.0
    every: int = 1
    samples: int = 0
    output: str = ""

    def validate(self) -> None:
        for field, least in {"frames": 0, "rate_hz": 0, "samples": 0, "every": 1}.items():
            self.require(getattr(self, field) >= least, field, f"at least {least}")
        name = f"letters in lower case and digits, such as i3d; not {', '.join(_TAKEN)}"
        self.require(bool(_NAME.fullmatch(self.name)) and self.name not in _TAKEN, "name", name)
        self.require(self.medium in LAYOUTS, "medium", f"one of {', '.join(LAYOUTS)}")
        self.require(bool(self.onnx), "onnx", "the network's file, beside the JSON file")
        layouts = LAYOUTS[self.medium]
        self.require(self.layout in ("", *layouts), "layout", f"of {self.medium} one of {', '.join(layouts)}")
        sized = len(self.size) == 2 and min(self.size) > 0
        self.require(sized or self.medium == "sound", "size", "height and width in pixels, such as [224, 224]")
        self.require(self.resize in RESIZES, "resize", f"one of {', '.join(RESIZES)}")
        self.require(not self.range or len(self.range) == 2 and len({*self.range}) == 2, "range", "two numbers")
        self.require(len(self.mean) in (0, 3), "mean", "three numbers")
        self.require(len(self.deviation) in (0, 3) and 0 not in self.deviation, "deviation", "three numbers, none 0")

    def completed(self) -> Reads:
        """The same with the defaults of its medium."""
        standard = (-1.0, 1.0) if self.medium == "sound" else (0.0, 1.0)
        return self.replace(layout=self.layout or LAYOUTS[self.medium][0], range=self.range or standard)


def read(path: str | Path) -> Reads:
    """The JSON file; UserError names what is wrong in it."""
    fields = read_object(Path(path).expanduser())
    known = {field.name for field in dataclasses.fields(Reads)}
    if unknown := sorted(set(fields) - known):
        raise UserError(f"{path}: {', '.join(unknown)}: the keys are {', '.join(sorted(known))}")
    try:
        return from_dict(Reads, fields).completed()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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
