"""Media files: clips of one format from any file that PyAV reads.

`poet.media.writing` writes what was made; `poet.media.film` finds and decodes the frames of a file,
`poet.media.colour` makes them RGB, `poet.media.pictures` reads still ones; `poet.media.sound` is what concerns sound
alone, `poet.media.files` what every file has in common; `poet.media.bitstreams` holds H.264 and H.265 streams in
memory, which tokenizers are compared with.

Video is uint8 RGB (T, H, W, 3), audio is mono int16 (S,) at a sample rate in Hz.  Every file is
written beside its place and renamed into it, so that a killed process leaves no half-written file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from poet.media.dubbing import dub, dub_whole, mux_sound
from poet.media.files import MediaError, PathLike, replacing, stated_seconds, write_text
from poet.media.film import Film, Frame, open_film
from poet.media.sound import Sound, Track, read_runs, read_sound, read_track, to_int16
from poet.media.suffixes import SOUND_SUFFIXES, VIDEO_SUFFIXES, picture_suffixes
from poet.media.writing import (
    frame_strip,
    read_comment,
    write_apng,
    write_gif,
    write_mp4,
    write_png_strip,
    write_wav,
    write_webm,
)
from poet.spec import ClipSpec

# Where the crop of a frame lies between (0, 0), its upper left, and (1, 1), its lower right.
Place = tuple[float, float]
CENTRE: Place = (0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """video: uint8 (T, H, W, 3).  audio: int16 mono (S,), or None where the file has no sound.

    fitted: what was done to the file's picture so that it has the clip's format; '' for nothing.
    """

    video: np.ndarray
    audio: np.ndarray | None
    fitted: str = ""


# ---------------------------------------------------------------------------------------- reading


def read_clip(
    path: PathLike, clip: ClipSpec, place: Place = CENTRE, sound: PathLike | None = None, hold: bool = False
) -> Clip:
    """Reads the first `clip.frames / clip.rate_hz` seconds of a file in the clip's format.

    Frame k is the source frame whose timestamp is nearest to k / rate_hz after the first frame's.
    Frames are turned and mirrored as the file asks, cropped to the clip's aspect and resized; of
    several streams the container's default counts, else the best.  Sound is mixed to mono, resampled, and
    aligned with the first frame; silence fills what the file does not cover, its gaps too.  A still
    image is a clip of one frame.

    Args:
        place: where the crop lies, by default about the centre.
        sound: another file that holds the sound, from the first frame on.
        hold: the last frame stands for those that a short file lacks.

    Raises:
        MediaError: no such file, undecodable, no video, corrupt, truncated or, unless `hold`, too short.
    """
    frames, start_s, fitted = _read_video(path, clip, place, hold)
    file, start_s = (path, start_s) if sound is None else (sound, 0.0)
    audio = read_track(file, clip.sample_rate_hz, clip.samples, start_s)
    return Clip(video=frames, audio=audio, fitted=fitted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """The size and duration of a file: sides in square pixels, after rotation; seconds from its first frame's start
    to its last frame's end; and how many frames it has."""

    height: int
    width: int
    seconds: float
    count: int

    @property
    def rate_hz(self) -> float:
        """Mean frames a second."""
        return self.count / self.seconds

    def frames(self, rate_hz: float) -> int:
        """Most frames that `read_clip` can take at this rate."""
        return 1 + int((self.seconds - 1e-6) * rate_hz)


def probe(path: PathLike) -> Picture:
    """Decodes the video of a file to measure it.

    Raises:
        MediaError: no such file, undecodable, or no video.
    """
    count = 0
    with open_film(path) as film:
        for frame, _ in film.timed():
            last, count = frame, count + 1
    width, seconds = round(last.width * last.aspect), film.end_s - film.start_s
    return Picture(height=last.height, width=width, seconds=seconds, count=count)


def read_frames(
    path: PathLike, clip: ClipSpec, place: Place = CENTRE, first: int = 0
) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a file in the clip's format, from number `first` on, as `read_clip` takes them.

    Yields:
        uint8 (H, W, 3), and the time of the file's first frame on its own clock in seconds.

    Raises:
        MediaError: as `read_clip`, of what was decoded so far; never for being too short.
    """
    with open_film(path, clip.rate_hz, first / clip.rate_hz) as film:
        taken = first
        for frame, until_s in film.timed():
            copies = _due(taken, until_s, clip)
            if copies:
                pixels = _fit(frame, clip, place)
            for _ in range(copies):
                yield pixels, film.start_s
            taken += copies


def display_size(path: PathLike) -> tuple[int, int]:
    """Height and width of a file's first frame in square pixels, the right way up; MediaError as `read_clip`."""
    with open_film(path) as film:
        frame, _ = next(film.timed())
        return frame.height, round(frame.width * frame.aspect)


def _read_video(path: PathLike, clip: ClipSpec, place: Place, hold: bool) -> tuple[np.ndarray, float, str]:
    """The clip's frames, the time of the first one on the file's clock in seconds, and how they were fitted."""
    with open_film(path, clip.rate_hz) as film:
        chosen: list[np.ndarray] = []
        for frame, until_s in film.timed():
            copies = min(_due(len(chosen), until_s, clip), clip.frames - len(chosen))
            if copies:
                chosen.extend([_fit(frame, clip, place)] * copies)
            if len(chosen) == clip.frames:
                return np.stack(chosen), film.start_s, _fitted(film, frame, clip)
        if not hold or _is_cut(film):
            raise MediaError(path, _shortage(film, clip))
        found = len(chosen)
        chosen.extend(chosen[-1:] * (clip.frames - found))
        return np.stack(chosen), film.start_s, _fitted(film, frame, clip, found)


def _due(taken: int, until_s: float, clip: ClipSpec) -> int:
    """Instants k / rate_hz of a clip up to `until_s`, without the first `taken` of them."""
    return max(math.floor((until_s + 1e-9) * clip.rate_hz) + 1 - taken, 0)


def _fit(frame: Frame, clip: ClipSpec, place: Place) -> np.ndarray:
    return resize_image(frame.pixels(), clip.height, clip.width, frame.aspect, place)


def _fitted(film: Film, frame: Frame, clip: ClipSpec, found: int = 0) -> str:
    """A description of the conversion of a video: crop, size, length; `found` frames if too few."""
    width, seconds, said = round(frame.width * frame.aspect), clip.frames / clip.rate_hz, []
    left, top, right, bottom = centre_box(frame.height, width, clip.height, clip.width)
    cut = round(right - left), round(bottom - top)
    if cut != (width, frame.height):
        said.append(f"cropped from {width}x{frame.height} to {cut[0]}x{cut[1]} about its centre")
    if cut != (clip.width, clip.height):
        said.append(f"scaled to {clip.width}x{clip.height}")
    if found:
        said.append(f"its last frame stands for the {clip.frames - found} that are missing of {clip.frames}")
    elif (stated_s := film.stated_s - film.start_s) > seconds + film.interval_s:
        said.append(f"the first {seconds:.2f} s of {stated_s:.2f} s are taken at {clip.rate_hz:g} Hz")
    return ", ".join(said)


def _is_cut(film: Film) -> bool:
    """Whether a film that was read to its end ends before its own header says."""
    return film.end_s + 2 * film.interval_s < film.stated_s


def _shortage(film: Film, clip: ClipSpec) -> str:
    """Says whether the file ends before its own header says, or was never long enough."""
    if _is_cut(film):
        return f"truncated: {film.end_s:.2f} s of {film.stated_s:.2f} s could be decoded"
    # Frame i is taken at i / rate, before the end.
    seconds = film.end_s - film.start_s
    have = math.ceil(round(seconds * clip.rate_hz, 6))
    return f"too short: it gives {have} frames at {clip.rate_hz:g} Hz ({seconds:.3f} s), {clip.frames} are needed"


# --------------------------------------------------------------------------------------- resizing


def centre_box(
    height: int, width: int, to_height: int, to_width: int, pixel_aspect: float = 1.0, place: Place = CENTRE
) -> tuple[float, float, float, float]:
    """The largest (left, top, right, bottom) with the aspect to_width / to_height, centred or at
    another place.

    `pixel_aspect` is the width of a source pixel over its height.
    """
    aspect = to_width / to_height / pixel_aspect
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - box_width) * place[0], (height - box_height) * place[1]
    return left, top, left + box_width, top + box_height


def resize_image(
    image_HxWx3: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0, place: Place = CENTRE
) -> np.ndarray:
    """Crops uint8 (H, W, 3) to the target's aspect; bicubic resize with antialiasing."""
    box = centre_box(*image_HxWx3.shape[:2], height, width, pixel_aspect, place)
    image = Image.fromarray(np.ascontiguousarray(image_HxWx3))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def resize_video(video_TxHxWx3: np.ndarray, height: int, width: int, place: Place = CENTRE) -> np.ndarray:
    """`resize_image` on every frame; the array itself where nothing changes."""
    if video_TxHxWx3.shape[1:3] == (height, width):
        return video_TxHxWx3
    return np.stack([resize_image(f, height, width, place=place) for f in video_TxHxWx3])
