"""The files of a request: prompts, and media in the run's clip format."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from poet import media
from poet.media.suffixes import STILL_SUFFIXES
from poet.sampling.masks import read_masks
from poet.sampling.requests import FLAT, Admitted
from poet.spec import ClipSpec, UserError, limited
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


class Given(NamedTuple):
    """The media of a request that the task needs.

    media: by medium, [n, ...].  ends: uint8 [1 or n, T, H, W, 3].  depths: distances float32 [1 or n, T, H, W].
    masks: bool [1 or n, T, H, W].
    """

    media: dict[str, np.ndarray]
    ends: np.ndarray | None = None
    depths: np.ndarray | None = None
    masks: np.ndarray | None = None


def read_prompts(path: str) -> list[str]:
    """The lines of a text file, without blank ones; none for an empty path."""
    if not path:
        return []
    file = Path(path).expanduser()
    if file.exists() and not file.is_file():
        raise UserError(f"prompt file {path} is no file: write one prompt per line into one")
    try:
        lines = limited(file).read_text(encoding="utf-8-sig").split("\n")  # With universal newlines.
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {path} cannot be read as UTF-8 text: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} holds no prompt: write one per line")
    blank = len(lines) - len(prompts) - (not lines[-1])
    if blank:
        _LOG.info("%s: %d prompts, %d blank lines skipped", path, len(prompts), blank)
    return prompts


def read_given(
    resolved: Resolved,
    task: Task,
    admitted: Admitted,
    paths: Sequence[str],
    ends: Sequence[str] = (),
    depths: Sequence[str] = (),
    masks: Sequence[str] = (),
) -> Given:
    """The media of the files that the task needs, by medium.

    A condition is a whole clip, or its conditioning frames; an opening of the output has as many frames as it needs.

    Args:
      ends: files whose first frames end the clips.
      depths: videos or pictures in which near is bright, or `FLAT`.
      masks: as of `read_masks`.

    Raises UserError (MediaError) for a file without them.
    """
    clip, frames, opening = resolved.spec.clip, admitted.chosen.frames, resolved.frames_of(admitted.latents)
    if not ends and task.derived and task.derived.ends:
        frames = 0
    opened = (s for s in task.predicted if s.known(resolved.format, admitted.latents))
    wanted = {s.medium: (s, opening) for s in opened} | {s.medium: (s, frames) for s in task.conditions}
    return Given(
        media={m: np.stack([s.read_file(p, clip, n) for p in paths]) for m, (s, n) in wanted.items() if paths},
        ends=np.stack([task.derived.read_file(path, clip, frames) for path in ends]) if ends else None,
        depths=np.stack([_read_depth(path, clip) for path in depths]) if depths else None,
        masks=read_masks(masks, paths, clip) if masks else None,
    )


def _read_depth(path: str, clip: ClipSpec) -> np.ndarray:
    """Distances float32 (T, H, W), larger is farther, of a film or a picture in which near is bright, or of `FLAT`."""
    if path == FLAT:
        return np.zeros((clip.frames, clip.height, clip.width), np.float32)
    most = 1 if Path(path).suffix.lower() in STILL_SUFFIXES else clip.frames
    frames = [frame for frame, _ in itertools.islice(media.read_frames(path, clip), most)]
    if len(frames) not in (1, clip.frames):
        raise media.MediaError(
            path, f"shows depth for {len(frames)} frames, expected {clip.frames}, or a picture for all of them"
        )
    shown = np.broadcast_to(np.stack(frames), (clip.frames, clip.height, clip.width, 3))
    return 255 - shown.mean(axis=-1, dtype=np.float32)
