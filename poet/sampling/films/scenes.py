"""From a storyboard to a film: each scene has a folder, named by a digest of everything that determines it.

    FOLDER/
      film.json        the storyboard of the film
      scenes/KEY/      a scene (`folder`); KEY is a digest of the scene, and of the one that it continues
      film.mp4, film.png

A changed scene has another key; unchanged scenes are reused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poet import media
from poet.runs import lease
from poet.sampling import record
from poet.sampling.films.folder import FILM, REQUEST, SHEET, FilmFolder, Take, write_film, write_request
from poet.sampling.films.long import begin
from poet.sampling.films.pieces import Piece
from poet.sampling.films.sampler import FilmSampler, Wish, seed_of
from poet.sampling.films.storyboard import CONTINUE, Scene, Storyboard
from poet.spec import SampleSpec, UserError, to_dict

_LOG = logging.getLogger(__name__)
SCENES = "scenes"
_OURS = {REQUEST, SCENES, FILM, SHEET, record.NAME, lease.FILE}


@dataclasses.dataclass(frozen=True)
class Shot:
    """A scene of a take.

    Attributes:
      key: names its folder.
      until_frame: its end in the take, a part of the film without cuts.
      request: everything that determines it.
      seed: of its noise.
    """

    scene: Scene
    key: str
    until_frame: int
    request: Mapping[str, Any]
    seed: int


def shots(
    board: Storyboard, sampler: FilmSampler, fixed: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> list[list[Shot]]:
    """The scenes of a storyboard, by takes."""
    takes: list[list[Shot]] = []
    seconds, seen = 0.0, []
    for scene in board.scenes:
        if scene.transition != CONTINUE:
            takes.append([])
            seconds = 0.0
        seconds += scene.seconds
        before = takes[-1][-1].key if takes[-1] else ""
        request = {
            "prompt": board.prompt(scene, words),
            "negative": scene.negative or board.negative,
            "sound_prompt": scene.sound_prompt,
            "seconds": scene.seconds,
            "seed": board.seed_of(scene),
            "begins_with": [_digest(name) for name in (scene.frame or scene.clip,) if name],
            "after": before,
            **fixed,
        }
        again = seen.count(request)  # Equal scenes are different takes.
        seen.append(request)
        request = {**request, "again": again}
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        seed = board.seed_of(scene)
        if before or again:  # Its clips shall have other noise than those before them.
            seed = seed_of(seed, int(key[:8], 16))
        takes[-1].append(Shot(scene, key, sampler.windows.frames_in(seconds), request, seed))
    return takes


def _digest(path: str) -> str:
    """Of an opening file of a scene.  UserError if it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def make(
    sampler: FilmSampler,
    board: Storyboard,
    folder: Path,
    *,
    made_by: Mapping[str, Any],
    sample: SampleSpec,
    words: Mapping[str, str] | None = None,
) -> list[Path]:
    """Makes the film of a storyboard, reusing the scenes in the folder; returns its files.

    Args:
      made_by: what else determines it, such as the checkpoint.
      words: for movements of the camera, as `camera.phrase` takes them.

    Raises UserError: the folder is not that of a storyboard, or the checkpoint cannot sample a scene.
    """
    _check_place(folder)
    takes = shots(board, sampler, {"sample": sample.noise, "made_by": {**made_by, **sampler.made_by}}, words)
    for shot in itertools.chain.from_iterable(takes):
        _check(sampler, shot, sample)
    with lease.hold(folder, what="folder of a film"):
        total, count = sum(map(len, takes)), itertools.count(1)
        for take in takes:
            for place, shot in enumerate(take):
                _LOG.info("scene %d of %d: %.80s", next(count), total, shot.request["prompt"] or "(no text)")
                _make_scene(sampler, take[:place], shot, folder, sample)
        found = [Take(_pieces_of(folder, take), take[-1].until_frame, _place(folder, take[0]).given) for take in takes]
        scenes = [shot.key for take in takes for shot in take]
        request = write_request(folder, {"storyboard": to_dict(board), "scenes": scenes})
        return [*write_film(folder, found, sampler.windows, sample.unmarked), request]


def _check_place(folder: Path) -> None:
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir() or inside - _OURS:
        some = ", ".join(sorted(inside - _OURS)[:3]) or "a file"
        raise UserError(
            f"{folder} is not the folder of a storyboard's film (it contains {some}): give a new folder, or such a one"
        )


def _check(sampler: FilmSampler, shot: Shot, sample: SampleSpec) -> None:
    """Raises UserError for a scene that the checkpoint cannot sample, or whose opening cannot be read."""
    opening = shot.scene.frame or shot.scene.clip
    if opening:
        next(media.read_frames(opening, sampler.generator.resolved.spec.clip))
    sampler.check(_wish(shot), sample, opened=bool(opening or shot.request["after"]))


def _wish(shot: Shot) -> Wish:
    asked = shot.request
    return Wish(
        prompt=asked["prompt"],
        negative=asked["negative"] if asked["prompt"] else "",
        sound_prompt=asked["sound_prompt"],
    )


def _make_scene(sampler: FilmSampler, earlier: Sequence[Shot], shot: Shot, folder: Path, sample: SampleSpec) -> None:
    place, wish = _place(folder, shot), _wish(shot)

    def start() -> Piece:
        if not earlier:
            return begin(sampler, shot.scene.frame or shot.scene.clip)
        *_, last = _pieces_of(folder, earlier)()
        return _nothing_more(last)

    with place.hold(shot.request):
        place.extend(
            sampler,
            start,
            shot.until_frame,
            lambda seconds: wish,
            seed=shot.seed,
            sample=sample,
            before=_pieces_of(folder, earlier),
        )


def _place(folder: Path, shot: Shot) -> FilmFolder:
    return FilmFolder(folder / SCENES / shot.key)


def _nothing_more(piece: Piece) -> Piece:
    """A piece that brings nothing, where another one ends."""
    silent = piece.samples is None
    return dataclasses.replace(
        piece,
        frames=piece.frames[:0],
        video=piece.video[:0],
        samples=None if silent else piece.samples[:0],
        audio=None if silent else piece.audio[:, :0],
    )


def _pieces_of(folder: Path, take: Sequence[Shot]):
    """Gives the pieces of scenes that continue each other, one at a time in memory."""

    def found() -> Iterable[Piece]:
        return itertools.chain.from_iterable(_place(folder, shot).pieces() for shot in take)

    return found
