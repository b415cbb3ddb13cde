"""Clips of Atari games, rendered by ale-py when they are asked for (`data/atari_av/README.md`).

Each game runs in a process of its own, because a cartridge can abort the emulator:

    python -m poet.evaluation.sets.atari GAME CLIPS OUT.npy CLIP_AS_JSON
"""

from __future__ import annotations

import json
import logging
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from poet import media
from poet.spec import ClipSpec, UserError, from_dict, to_dict

_LOG = logging.getLogger(__name__)

GAMES = ("seaquest", "ms_pacman", "space_invaders", "enduro", "breakout", "qbert", "asterix", "riverraid")
CONSOLE_HZ = 60
SEED = 0
# Random actions before the first clip and between clips, beyond title screens and still openings.
WARM_UP_FRAMES = 300
PAUSE_FRAMES = 120
# A random action is held that long, a quarter of a second, so that something comes of it.
HOLD_FRAMES = 15
TIMEOUT_S = 300


def render(clip: ClipSpec, clips: int, games: Sequence[str] = GAMES) -> np.ndarray:
    """Clips of a random player, uint8 (N, T, H, W, 3): the games in turn, N <= `clips`.

    The whole screen is squeezed into the clip's size.  The same package gives the same clips.  A
    game whose process fails is skipped, with a warning.

    Raises:
      UserError: no game gave a clip, or `clip.rate_hz` is beyond the console's 60.
    """
    if clip.rate_hz > CONSOLE_HZ:
        raise UserError(f"CLIP.rate_hz = {clip.rate_hz:g}: an Atari console shows {CONSOLE_HZ} frames a second")
    counts = [len(range(i, clips, len(games))) for i in range(len(games))]
    found = [list(_game_clips(g, n, clip)) for g, n in zip(games, counts) if n]
    turns = [video[i] for i in range(max(counts)) for video in found if i < len(video)]
    if not turns:
        raise UserError(f"ale-py rendered none of the games {', '.join(games)}")
    return np.stack(turns)


def _game_clips(game: str, clips: int, clip: ClipSpec) -> Iterator[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "clips.npy")
        command = [sys.executable, "-m", __name__, game, str(clips), str(out)]
        command.append(json.dumps(to_dict(clip)))
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        except subprocess.SubprocessError as error:
            lines = (getattr(error, "stderr", None) or "").strip().splitlines()
            _LOG.warning("Atari game %r is skipped: %s", game, lines[-1] if lines else error)
            return
        yield from np.load(out)


# ------------------------------------------------------------------------------- in the process


def play(game: str, clips: int, clip: ClipSpec) -> np.ndarray:
    """Clips of one game in this process, uint8 (clips, T, H, W, 3)."""
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    console = ALEInterface()
    console.setInt("random_seed", SEED)
    console.loadROM(roms.get_rom_path(game))
    frames = _frames(console, np.random.default_rng(SEED))
    _skip(frames, WARM_UP_FRAMES)
    return np.stack([_clip(frames, clip) for _ in range(clips)])


def _frames(console: Any, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every frame (210, 160, 3) of an endless random play; a lost game starts again.

    A frame is the brighter of itself and the one before it, value by value: many games draw half
    of their objects in every other frame.
    """
    actions = console.getMinimalActionSet()
    before = console.getScreenRGB()
    while True:
        action = rng.choice(actions)
        for _ in range(HOLD_FRAMES):
            if console.game_over():
                console.reset_game()
            console.act(action)
            frame = console.getScreenRGB()
            yield np.maximum(before, frame)
            before = frame


def _skip(frames: Iterator[np.ndarray], count: int) -> None:
    for _ in range(count):
        next(frames)


def _clip(frames: Iterator[np.ndarray], clip: ClipSpec) -> np.ndarray:
    """The next clip: frame k is the console's frame nearest to k / rate_hz; then a pause."""
    due = np.rint(np.arange(clip.frames) * CONSOLE_HZ / clip.rate_hz).astype(int)
    video, seen = [], -1
    for index in due:
        _skip(frames, index - seen - 1)
        frame, seen = next(frames), index
        height, width = frame.shape[:2]
        squeeze = height * clip.width / (width * clip.height)
        video.append(media.resize_image(frame, clip.height, clip.width, squeeze))
    _skip(frames, PAUSE_FRAMES)
    return np.stack(video)


def main(game: str, clips: str, out: str, clip: str) -> None:
    np.save(out, play(game, int(clips), from_dict(ClipSpec, json.loads(clip))))


if __name__ == "__main__":
    main(*sys.argv[1:])
