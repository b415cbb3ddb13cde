"""The body of `poet upscale`: clips from files in, larger clips to files out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import poet
from poet import media
from poet import spec as specs
from poet.media import watermark
from poet.runs.run import Run
from poet.sampling import larger
from poet.sampling.superres import Upscaler, chained
from poet.spec import ClipSpec, UserError
from poet.streams.low_resolution import SCALE
from poet.tasks.registry import Task


def load(runs: Sequence[Run], task: Task, clip: ClipSpec) -> list[Upscaler]:
    """The networks that are to upscale a task's clips of this format; [] for none.

    Raises UserError: a task that makes no picture, clips that the first network cannot take, and as
    `larger.load`.
    """
    if runs and not any(stream.shows for stream in task.predicted):
        raise UserError(f"task {task.name} generates no frames for --upscale: drop it")
    upscalers = [one for run in runs for one in larger.load(run)]
    for upscaler in upscalers[:1]:
        upscaler.check((1, clip.frames, clip.height, clip.width, 3))
    return upscalers


def check_size(path: str, size: tuple[int, int], to: int, networks: int) -> None:
    """Raises UserError unless a clip of `size` (height, width) becomes `to` rows high by so many networks.

    Args:
      to: 0 is whatever they make.
    """
    height, width = size
    made = height * SCALE**networks
    if not to or to == made:
        return
    if to <= height:
        raise UserError(
            f"{path} is {height}x{width}, which is no smaller than --to={to}: ask for more than {height} rows"
        )
    raise UserError(
        f"{path} is {height}x{width}, and --to={to} is {to / height:.4g} times its height: each --checkpoint doubles "
        f"it, so that {networks} make {made} rows; give --to={made}, other --checkpoint flags, or a clip of "
        f"{to / SCALE**networks:g} rows"
    )


def read(path: str, upscaler: Upscaler, to: int, networks: int) -> media.Clip:
    """The whole clip at the frame rate of the network's clips, its width cut to whole latents about its middle.

    Raises UserError (MediaError) for a file that is no clip, and as `check_size` and `Upscaler.check`.
    """
    picture, clip = media.probe(path), upscaler.experiment.clip
    check_size(path, (picture.height, picture.width), to, networks)
    column = upscaler.video_tokenizer.spec.factor[2]
    width = picture.width - picture.width % column
    frames = max(picture.frames(clip.rate_hz), 1)
    upscaler.check((1, frames, picture.height, width, 3))
    return media.read_clip(path, clip.replace(frames=frames, height=picture.height, width=width))


def run(
    paths: Sequence[str],
    upscalers: Sequence[Upscaler],
    out: str | Path,
    *,
    to: int = 0,
    prompts: Sequence[str] = (),
    seed: int = 0,
    names: Sequence[str] = (),
    unmarked: str = "",
) -> Iterator[Path]:
    """Writes OUT/NNN.mp4 and .png of each clip, with its sound, and upscale.json; yields the files as they are made.

    Args:
      upscalers: one or more; each takes what the one before it has made.
      to: rows of the result, 0 for whatever they make.
      prompts: none, one for all clips or one for each.
      names: of the checkpoints, for the record.
      unmarked: why the results shall carry no watermark.

    Raises UserError, before anything is sampled, for files or prompts that do not fit.
    """
    if len(prompts) not in (0, 1, len(paths)):
        raise UserError(f"{len(prompts)} prompts for {len(paths)} clips: give none, one, or one for each clip")
    texts = list(prompts) * (len(paths) if len(prompts) == 1 else 1)
    clips = [read(path, upscalers[0], to, len(upscalers)) for path in paths]
    samples, out = [], Path(out).expanduser()
    for number, (path, clip) in enumerate(zip(paths, clips)):
        text = texts[number : number + 1]
        made = chained(upscalers, clip.video[None], text, seed=seed, first=number)[0]
        marker = watermark.Marker.of(made, unmarked)
        comment = f"{watermark.GENERATED}: poet {poet.__version__}, upscaled, seed {seed}, row {number}"
        files = _write(marker(made), clip, out / f"{number:03d}", upscalers[-1].experiment.clip, comment)
        samples.append(
            {
                "clip": path,
                "size": list(made.shape),
                "prompt": "".join(text),
                "files": [f.name for f in files],
                "watermark": str(marker),
            }
        )
        yield from files
    settings = [specs.to_dict(upscaler.experiment.super_resolution) for upscaler in upscalers]
    record = {"checkpoints": list(names), "seed": seed, "super_resolution": settings, "samples": samples}
    media.write_text(out / "upscale.json", json.dumps(record, indent=2) + "\n")
    yield out / "upscale.json"


def _write(video: np.ndarray, clip: media.Clip, stem: Path, spec: ClipSpec, comment: str) -> list[Path]:
    strip, mp4 = stem.with_suffix(".png"), stem.with_suffix(".mp4")
    media.write_png_strip(strip, video, comment=comment)
    if len(video) == 1:
        return [strip]
    media.write_mp4(mp4, video, spec.rate_hz, clip.audio, spec.sample_rate_hz, comment)
    return [mp4, strip]
