"""What one clip adds to a film, and the state at the film's new end, as a value and as a file.

n frames, S samples, t h w latents, L levels and F frames of audio codes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from poet import media
from poet.runs import arrays
from poet.sampling.films.pictures import PicturesEnd
from poet.sampling.films.sounds import SoundEnd
from poet.spec import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What one clip adds to a film.

    Attributes:
      frames: uint8 [n, H, W, 3], new ones.
      video: int32 [t, h, w], codes new to the film's stream.
      end: state of the frames after it.
      samples: int16 [S], samples that became final; None for a silent film.
      audio: int32 [L, F], codes new to the film's stream; None for a silent film.
      rest: int16 [S], the samples after those if the film ends here; None for a silent film.
      sound_end: where the sound ends behind it; None for a silent film.
    """

    frames: np.ndarray
    video: np.ndarray
    end: PicturesEnd
    samples: np.ndarray | None = None
    audio: np.ndarray | None = None
    rest: np.ndarray | None = None
    sound_end: SoundEnd | None = None


_OWN = ("frames", "video", "samples", "audio", "rest")


def save(path: Path, piece: Piece) -> None:
    """Writes a piece, without its decoders, as one .npz; equal pieces give equal bytes."""
    found = {name: getattr(piece, name) for name in _OWN}
    for part in ("end", "sound_end"):
        end = getattr(piece, part)
        fields = dataclasses.fields(end) if end is not None else ()
        found |= {f"{part}.{f.name}": getattr(end, f.name) for f in fields if f.name != "decoder"}
    _write(path, found)


def load(path: Path) -> Piece:
    """Reads what `save` wrote, without decoders (`poet.sampling.films.sampler.FilmSampler.resume` restores them).

    Raises UserError for any other file.
    """
    with _reading(path) as found:
        has_audio = "samples" in found
        return Piece(
            **{name: found[name] for name in (_OWN if has_audio else _OWN[:2])},
            end=PicturesEnd(**_of("end.", found)),
            sound_end=SoundEnd(**_of("sound_end.", found)) if has_audio else None,
        )


def save_media(path: Path, video: np.ndarray | None, sound: np.ndarray | None) -> None:
    """Writes frames [n, H, W, 3] and samples [S]; either may be None."""
    _write(path, {"video": video, "sound": sound})


def load_media(path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads what `save_media` wrote.  Raises UserError for any other file."""
    with _reading(path) as found:
        return found.get("video"), found.get("sound")


def _write(path: Path, arrays: dict[str, np.ndarray | None]) -> None:
    whole = io.BytesIO()
    np.savez_compressed(whole, **{name: array for name, array in arrays.items() if array is not None})
    with media.replacing(path) as file:
        file.write_bytes(whole.getvalue())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[dict]:
    """The arrays of a file, numbers as such; what is wrong with them, there or in the block, names the file."""
    try:
        yield {name: value if value.ndim else int(value) for name, value in arrays.read_npz(path).items()}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged: it holds no clip of a film ({error}); remove it to sample it again"
        ) from None


def _of(prefix: str, found: dict) -> dict:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
