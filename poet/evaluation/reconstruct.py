"""`poet reconstruct`: what a tokenizer makes of video files, at what rate and how fast."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poet import media
from poet.evaluation.metrics.pixels import clip_psnr
from poet.spec import ClipSpec, UserError
from poet.tokenizers.video.base import VideoTokenizer

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One clip, encoded and decoded.

    Attributes:
      shape: frames, all of which are rebuilt, height and width of the clip.
      coded_frames: those and the repeats of the last one that fill the last latent.
      codes: number of codes of the encoded frames, of `bits` bits each.
      psnr_db: mean over the clip's frames.
      encode_s, decode_s: wall time of a second run, so that compilation is not in it.
    """

    path: Path
    shape: tuple[int, int, int]
    coded_frames: int
    codes: int
    bits: int
    psnr_db: float
    encode_s: float
    decode_s: float

    def __str__(self) -> str:
        frames, height, width = self.shape
        repeats = self.coded_frames - frames
        coded = f" (coded as {self.coded_frames}: the last one repeated {repeats} more)" if repeats else ""
        speeds = (
            f"{name} {frames / seconds:.1f} frames/s, {self.codes / seconds:.0f} codes/s"
            for name, seconds in (("encode", self.encode_s), ("decode", self.decode_s))
        )
        return (
            f"{self.path}: {frames} frames of {height}x{width}{coded}, {self.codes} codes, "
            f"{self.codes * self.bits / math.prod(self.shape):.4f} bits per pixel, PSNR {self.psnr_db:.2f} dB; "
            + "; ".join(speeds)
        )


def names(clips: Sequence[Path]) -> list[str]:
    """The file name of each clip's reconstruction: CLIP.mp4.

    Raises UserError when two clips would go to one file.
    """
    made = [f"{clip.stem}.mp4" for clip in clips]
    twice = [name for i, name in enumerate(made) if name in made[:i]]
    if twice:
        raise UserError(f"two clips would be written to {twice[0]}: give them different names")
    return made


def beside(path: Path) -> Path:
    """The file with originals and reconstructions side by side."""
    return path.with_name(f"{path.stem}-side_by_side{path.suffix}")


def read(
    path: Path, tokenizer: VideoTokenizer, *, rate_hz: float, height: int = 0, width: int = 0, frames: int = 0
) -> np.ndarray:
    """A file as uint8 (T, H, W, 3).

    0 frames are all.  Sides of 0 are the file's own, rounded down to the network's factor, which is
    logged.  Raises UserError naming the file when it is too short or too small.
    """
    picture = media.probe(path)
    _, h, w = tokenizer.spec.factor
    clip = ClipSpec(
        frames=frames or picture.frames(rate_hz),
        height=height or max(picture.height // h, 1) * h,
        width=width or max(picture.width // w, 1) * w,
        rate_hz=rate_hz,
    )
    try:
        tokenizer.spec.grid(_whole(clip.frames, tokenizer), clip.height, clip.width)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not (height or width) and (clip.height, clip.width) != (picture.height, picture.width):
        _LOG.warning(
            "%s: %dx%d pixels are cropped to %dx%d, multiples of %dx%d that the tokenizer takes",
            path,
            picture.height,
            picture.width,
            clip.height,
            clip.width,
            h,
            w,
        )
    return media.read_clip(path, clip).video


def _whole(frames: int, tokenizer: VideoTokenizer) -> int:
    """The least number of frames, 1 + k * factor, that holds so many."""
    t = tokenizer.spec.factor[0]
    return 1 + -(-(frames - 1) // t) * t


def reconstruct(
    tokenizer: VideoTokenizer, video_TxHxWx3: np.ndarray, path: Path, *, name: str, rate_hz: float
) -> Reconstruction:
    """Encodes and decodes a clip; writes the result to `path`, and the original `beside` it.

    Frames that do not fill the last latent are coded with repeats of the last one, which are cut off
    again.  `name` is what errors call the clip.
    """
    frames = len(video_TxHxWx3)
    repeats = _whole(frames, tokenizer) - frames
    filled = np.concatenate([video_TxHxWx3, np.repeat(video_TxHxWx3[-1:], repeats, axis=0)])
    _compile(tokenizer, filled, name)
    start_s = time.perf_counter()
    ids = tokenizer.encode(filled[None], names=[name])
    encoded_s = time.perf_counter()
    rebuilt = tokenizer.decode(ids)[0, :frames]
    decoded_s = time.perf_counter()
    media.write_mp4(path, rebuilt, rate_hz)
    media.write_mp4(beside(path), np.concatenate([video_TxHxWx3, rebuilt], axis=2), rate_hz)
    return Reconstruction(
        path=path,
        shape=rebuilt.shape[:3],
        coded_frames=len(filled),
        codes=ids.size,
        bits=tokenizer.spec.bits,
        psnr_db=clip_psnr(video_TxHxWx3, rebuilt),
        encode_s=encoded_s - start_s,
        decode_s=decoded_s - encoded_s,
    )


def _compile(tokenizer: VideoTokenizer, video_TxHxWx3: np.ndarray, name: str) -> None:
    """Runs the shortest clip with the first, a middle and the last chunk of this one."""
    chunk = tokenizer.chunk_frames or len(video_TxHxWx3)
    short = 1 + 2 * chunk + (len(video_TxHxWx3) - 1) % chunk
    tokenizer.decode(tokenizer.encode(video_TxHxWx3[None, :short], names=[name]))
