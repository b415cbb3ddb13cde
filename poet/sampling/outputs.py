"""Files of what was generated: mp4 with sound, gif, PNG strip, wav, and a record of the request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from poet import media
from poet.spec import ClipSpec


def write_outputs(
    sampled: Any,
    prompts: Sequence[str],
    out_dir: str | Path,
    clip: ClipSpec,
    details: dict[str, Any],
) -> list[Path]:
    """Writes each sample as mp4, gif and PNG strip (an image as PNG alone), and `generate.json`.

    Sound goes into the mp4 and into a wav beside it, a text into a file of its own and the record.

    Args:
      sampled: video, audio and texts of the N samples, as of `poet.sampling.generate.Drawn`.
      prompts: one label per sample.
      clip: gives the frame rate and the sample rate.
      details: what else `generate.json` records.
    """
    out_dir = Path(out_dir).expanduser()
    files, samples = [], []
    for row, prompt in enumerate(prompts):
        video, sound, text = (
            None if a is None else a[row] for a in (sampled.video, sampled.audio, sampled.texts)
        )
        written = _write_sample(video, sound, text, out_dir / f"{row:03d}", clip)
        files += written
        names = [path.name for path in written]
        sample = {"row": row, "prompt": prompt, "files": names}
        samples.append(sample if text is None else sample | {"text": text})
    record = out_dir / "generate.json"
    made = {**details, "rate_hz": clip.rate_hz, "samples": samples}
    if sampled.audio is not None:
        made["sample_rate_hz"] = clip.sample_rate_hz
    media.write_text(record, json.dumps(made, indent=2))
    return [*files, record]


def _write_sample(
    video: np.ndarray | None,
    sound: np.ndarray | None,
    text: str | None,
    stem: Path,
    clip: ClipSpec,
) -> list[Path]:
    files = [] if video is None else _write_video(video, sound, stem, clip)
    if text is not None:
        media.write_text(stem.with_suffix(".txt"), text + "\n")
        files.append(stem.with_suffix(".txt"))
    if sound is not None:
        wav = stem.with_suffix(".wav")
        media.write_wav(wav, sound, clip.sample_rate_hz)
        files.append(wav)
    return files


def _write_video(
    video: np.ndarray, sound: np.ndarray | None, stem: Path, clip: ClipSpec
) -> list[Path]:
    strip, gif, mp4 = (stem.with_suffix(suffix) for suffix in (".png", ".gif", ".mp4"))
    media.write_png_strip(strip, video)
    if len(video) == 1:
        return [strip]
    media.write_gif(gif, video, clip.rate_hz)
    if video.shape[1] % 2 or video.shape[2] % 2:  # H.264 takes even sides only.
        return [gif, strip]
    media.write_mp4(mp4, video, clip.rate_hz, sound, clip.sample_rate_hz)
    return [mp4, gif, strip]
