"""A film on disk: its request, its clips as they are sampled, and its files for viewing.

    FOLDER/
      film.json     the request, the fingerprints of the networks, and whether the frames of film.mp4 carry a watermark
      clips/        one file for each clip (`poet.sampling.films.pieces`); existing ones are reused
      film.mp4      the whole film
      film.png      a frame of each second

Memory holds one clip at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.media import watermark
from poet.media.joining import open_film_writer
from poet.runs import lease
from poet.sampling import record
from poet.sampling.films import pieces, sheets
from poet.sampling.films.pieces import Piece
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.sampling.films.sounds import fitted
from poet.sampling.films.windows import Windows
from poet.spec import SampleSpec, UserError, read_object, to_dict

REQUEST, CLIPS, FILM, SHEET = "film.json", "clips", "film.mp4", "film.png"
# Of `REQUEST`: said of the film that was written last, and not asked for.
_WATERMARK = "watermark"
_OURS = {REQUEST, CLIPS, FILM, SHEET, record.NAME, lease.FILE}
# Seconds over which the sound of a film fades at a cut.
CUT_FADE_S = 0.01
# Most frames in a picture of a film.
MOST_SHOWN = 64


@dataclasses.dataclass(frozen=True)
class FilmFolder:
    """A folder of one film."""

    path: Path

    @contextlib.contextmanager
    def hold(self, request: Mapping[str, Any]) -> Iterator[None]:
        """Locks out other writers of the film of this request during a block.

        Raises UserError: the folder is not that of a film, or has another film; the message names the difference.
        """
        self._check_place()
        with lease.hold(self.path, what="folder of a film"):
            request = json.loads(json.dumps(request))
            file = self.path / REQUEST
            if file.exists():
                made = {name: value for name, value in read_object(file).items() if name != _WATERMARK}
                check_same(self.path, made, request)
            else:
                write_request(self.path, request)
            yield

    def _check_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a folder for the film")
        inside = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        if inside and REQUEST not in inside and inside - _OURS:
            some = ", ".join(sorted(inside)[:3])
            raise UserError(
                f"{self.path} is not empty and holds no film (but {some}): give a new folder, or that of a film"
            )

    def clip(self, number: int) -> Path:
        """The file of a clip."""
        return self.path / CLIPS / f"{number:05d}.npz"

    @property
    def clips(self) -> int:
        """The number of clips, up to the first gap."""
        return next(n for n in itertools.count() if not self.clip(n).exists())

    def pieces(self) -> Iterator[Piece]:
        """The clips in order, one at a time in memory."""
        return (pieces.load(self.clip(number)) for number in range(self.clips))

    @property
    def given(self) -> int:
        """Frames that the film began with, of what is made."""
        return len(next(self.pieces()).frames)

    def extend(
        self,
        sampler: FilmSampler,
        start: Callable[[], Piece],
        frames: int,
        wish: Callable[[float], Wish],
        *,
        seed: int,
        before: Callable[[], Iterable[Piece]] = tuple,
        sample: SampleSpec | None = None,
        on_clip: Callable[[Piece], None] = lambda piece: None,
    ) -> Piece:
        """Makes the clips that lack until the film has so many frames; returns the last one.

        Args:
          start: the first piece, where nothing is made yet.
          wish: what is asked for at a time of the film, in seconds.
          before: the pieces of the film in front of this folder's, of which `start` goes on.
          on_clip: called with every new piece, when it is on disk.
        """
        made = self.clips
        if not made:
            pieces.save(self.clip(0), start())
        last = sampler.resume(itertools.chain(before(), self.pieces()))
        for number in itertools.count(max(made, 1)):
            if last.end.frames >= frames:
                return last
            new = sampler.windows.new_frames(len(last.end.given))
            middle = (last.end.frames + new / 2) / sampler.windows.rate_hz
            (last,) = sampler.go_on(last, [wish(middle)], seed=seed, number=number, sample=sample)
            pieces.save(self.clip(number), last)
            on_clip(last)
        raise AssertionError("unreachable")


def write_request(folder: Path, request: Mapping[str, Any]) -> Path:
    """Writes `REQUEST`; the file."""
    media.write_text(folder / REQUEST, json.dumps(request, indent=2, ensure_ascii=False) + "\n")
    return folder / REQUEST


def check_same(folder: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises UserError, naming what differs, unless a folder's film is the one that is asked for."""
    if "sample" in made:  # Settings that came since it was begun were as they are by default.
        since = {name: value for name, value in to_dict(SampleSpec()).items() if name in asked.get("sample", {})}
        made = {**made, "sample": {**since, **made["sample"]}}
    for name in sorted({*made, *asked}):
        if made.get(name) != asked.get(name):
            raise UserError(
                f"{folder} holds another film: its {name} is {_short(made.get(name))}, requested is "
                f"{_short(asked.get(name))}; repeat that request to continue it, or give a new folder"
            )


def _short(value: Any) -> str:
    return re.sub(r"\s+", " ", json.dumps(value, ensure_ascii=False))[:120]


@dataclasses.dataclass(frozen=True)
class Take:
    """A stretch of film without a cut.

    Attributes:
      pieces: gives them, in order; each goes on from the one before.
      frames: so many are shown; further ones that were made are not.
      given: so many of them, the first ones, were given.
    """

    pieces: Callable[[], Iterable[Piece]]
    frames: int
    given: int = 0

    def parts(self, windows: Windows) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(frames uint8 [n, H, W, 3], samples int16 [S] or None), in order; the samples last as long as the frames."""
        frames, samples = self.frames, windows.sample_of(self.frames)
        for piece in self.pieces():
            yield piece.frames[:frames], None if piece.samples is None else piece.samples[:samples]
            frames = max(frames - len(piece.frames), 0)
            samples = max(samples - len(piece.samples), 0) if piece.samples is not None else 0
        if piece.rest is not None:
            yield piece.frames[:0], fitted(piece.rest, samples)


def write_film(folder: Path, takes: Sequence[Take], windows: Windows, unmarked: str = "") -> list[Path]:
    """Writes the mp4 of takes, cut one after the other, and a picture of it; the files.

    A `REQUEST` in the folder then says whether the frames carry a watermark.

    Args:
      unmarked: why what was made shall carry no watermark; what was given never does.
    """
    film, sheet, shown = folder / FILM, folder / SHEET, []
    fade = round(CUT_FADE_S * windows.sample_rate_hz)
    every = max(round(windows.rate_hz), -(-sum(take.frames for take in takes) // MOST_SHOWN))
    with contextlib.ExitStack() as stack:
        writer, count = None, 0
        for number, take in enumerate(takes):
            given = take.given
            parts = faded(take.parts(windows), fade * (number > 0), fade * (number + 1 < len(takes)))
            for frames, samples in parts:
                if writer is None:
                    rate = None if samples is None else windows.sample_rate_hz
                    writer = stack.enter_context(open_film_writer(film, *frames.shape[1:3], windows.rate_hz, rate))
                    marker = watermark.Marker.of(frames, unmarked)
                writer.add(marker(frames, given), samples)
                given = max(given - len(frames), 0)
                shown += list(frames[-count % every :: every])
                count += len(frames)
    sheets.write(sheet, [shown[at : at + 8] for at in range(0, len(shown), 8)])
    if (folder / REQUEST).exists():
        write_request(folder, {**read_object(folder / REQUEST), _WATERMARK: str(marker)})
    return [film, sheet]


def faded(
    parts: Iterable[tuple[np.ndarray, np.ndarray | None]], at_start: int, at_end: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Parts of a film whose first and last so many samples rise from silence and fall to it."""
    held, done = np.zeros(0, np.int16), 0
    for frames, samples in parts:
        if samples is None:
            yield frames, None
            continue
        rise = np.clip((done + np.arange(len(samples)) + 0.5) / max(at_start, 1), 0, 1) if at_start else 1
        done += len(samples)
        whole = np.concatenate([held, np.round(samples * rise).astype(np.int16)])
        ready = max(len(whole) - at_end, 0)
        held = whole[ready:]
        yield frames, whole[:ready]
    if len(held):
        yield frames[:0], np.round(held * np.linspace(1, 0, len(held))).astype(np.int16)
