"""The films that clips are cut from, and how they are cut.

Shape legend: T frames, H/W rows/columns, M side of a clip.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from poet import media
from poet.spec import ClipSpec

CLIP_FRAMES = 17
STRIDE_FRAMES = 8  # about half a clip: neighbouring clips of a film share the other half
FILM_SCALE = 2  # short side of a film while it is cut, in sides of a clip
# Levels of 255; below them a clip is a plain surface (title cards, fades) or a still.
LEAST_CONTRAST = 6.0
LEAST_CHANGE = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """A file of a Debian package.

    Attributes:
      file: path in the package.
      aspect: width over height of the picture as shown.
      seconds: length that is used, from the beginning; credits at an end are left out.
      rate_hz: frames taken a second: 8, or more where the film is shorter than a clip.
      crops: clips of each place in time: the first one of the whole height, the others random.
    """

    package: str
    file: str
    licence: str
    caption: str
    aspect: float
    seconds: float
    rate_hz: float = 8.0
    crops: int = 2

    @property
    def name(self) -> str:
        return f"{self.package}/{pathlib.PurePath(self.file).stem}"


def _blupi(name: str, seconds: float, caption: str) -> Film:
    return Film(
        package="planetblupi-common",
        file=f"usr/share/planetblupi/movie/{name}.mkv",
        licence="GPL-3.0-or-later",
        caption=f"rendered: {caption}",
        aspect=4 / 3,
        seconds=seconds,
        crops=3,
    )


def _lebiniou(time: str, seconds: float, caption: str) -> Film:
    return Film(
        package="lebiniou-data",
        licence="GPL-2.0-or-later",
        aspect=16 / 9,
        file=f"usr/share/lebiniou/vue/media/lebiniou-2021-06-10_{time}.mp4",
        caption=f"abstract pattern: {caption}",
        seconds=seconds,
    )


def _physics(file: str, seconds: float, rate_hz: float, caption: str) -> Film:
    return Film(
        package="python3-mecavideo",
        file=f"usr/share/pymecavideo/data/video/{file}",
        licence="CC-BY-SA-3.0",
        caption=caption,
        aspect=4 / 3,
        seconds=seconds,
        rate_hz=rate_hz,
        crops=6,
    )


FILMS: tuple[Film, ...] = (
    _blupi("history2", 11.8, "a blue robot drives up and raises its arm at night"),
    _blupi("play101", 6.4, "a spider with large eyes crawls out of a dark wood"),
    _blupi("play103", 11.8, "a yellow figure walks over a wooden bridge"),
    _blupi("play105", 8.8, "a yellow figure with binoculars stands before a stone tower"),
    _blupi("play107", 7.0, "a yellow figure works in a laboratory with glass bulbs"),
    _blupi("play108", 6.9, "a sad yellow figure waves its arms and jumps up"),
    _blupi("play110", 7.9, "a yellow bulldozer comes out of fog"),
    _blupi("play113", 4.9, "a yellow figure drives a small red car through the dark"),
    _blupi("play116", 7.9, "a blue fountain of crystal sparkles"),
    _blupi("play118", 7.5, "a yellow figure in a grey diving suit lifts its helmet"),
    _blupi("play119", 5.9, "a yellow figure sits in falling snow"),
    _blupi("play124", 7.9, "a spotted blue figure stands by blue blocks"),
    _blupi("win005", 17.4, "many spotted figures dance"),
    _blupi("win129", 12.8, "a rocket flies around a small planet"),
    _lebiniou("12-17-47", 6.9, "a mirrored violet band swells and shrinks"),
    _lebiniou("12-19-19", 8.9, "white and orange clouds in a blue frame"),
    _lebiniou("12-19-53", 10.5, "a fine-grained weave of purple, blue and orange"),
    _lebiniou("12-23-00", 9.4, "purple and yellow curves turn"),
    _lebiniou("12-23-40", 9.0, "a bright kaleidoscope"),
    _lebiniou("12-24-29", 8.4, "shining blue waves over violet"),
    _lebiniou("12-27-01", 8.2, "green scribbles on orange"),
    _lebiniou("12-27-41", 6.6, "grey twisted smoke on black"),
    _lebiniou("12-28-28", 22.2, "a white glow on violet"),
    _lebiniou("12-32-58", 7.1, "a striped ball turns on green"),
    _lebiniou("12-34-46", 6.5, "blue and green streams of noise"),
    _lebiniou("12-35-23", 7.8, "red figures glow on black"),
    Film(
        package="fillets-ng-data",
        file="usr/share/games/fillets-ng/images/menu/intro.mpg",
        licence="GPL-2.0-only",
        aspect=4 / 3,
        seconds=73.0,
        caption="rendered cartoon: a ship from space sinks in the sea, and two fish look at it",
    ),
    Film(
        package="openboard-common",
        aspect=4 / 3,
        seconds=150.0,
        licence="CC-BY-2.5",
        file="usr/share/openboard/library/videos/wannaworktogether.mp4",
        caption="motion graphics: flat shapes and words about sharing",
    ),
    Film(
        package="node-opencv",
        file="usr/share/doc/node-opencv/examples/files/motion.mov",
        licence="MIT",
        aspect=16 / 9,
        seconds=8.0,
        crops=4,
        caption="camera: a stick pushes a coin over a table",
    ),
    _physics("balle-jbart.mp4", 10.1, 8, "camera: a ball rolls before a dark board, seen from above"),
    _physics("balle1-vp9.avi", 1.59, 12, "camera: a man throws a red ball past a yellow ruler in a classroom"),
    _physics("Effet_force_magnetique.ogv", 1.3, 16, "camera: two pucks push each other apart on a table"),
    _physics("Force_constante.avi", 1.0, 20, "camera: a puck slides along a yellow ruler"),
    _physics("Principe_inertie.avi", 1.12, 16, "camera: a puck slides over a table"),
    Film(
        package="forensics-samples-files",
        licence="CC-BY-SA-4.0",
        aspect=16 / 9,
        seconds=1.48,
        file="usr/share/forensics-samples/original-files/movie1/VID_20191220_170832.mp4",
        rate_hz=12,
        crops=6,
        caption="camera: a white dog lies on a floor",
    ),
)


def film_clips(film: Film, path: pathlib.Path, size: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, uint8 video (17, size, size, 3)) of the clips that show something moving.

    Raises:
      MediaError: the file is damaged, or shorter than `film.seconds`.
    """
    frames = _read(film, path, FILM_SCALE * size)
    for start in range(0, len(frames) - CLIP_FRAMES + 1, STRIDE_FRAMES):
        for crop in range(film.crops):
            key = f"{film.name}/{start:04d}-{crop}"
            draw = np.random.default_rng((seed, zlib.crc32(key.encode())))
            box = _box(*frames.shape[1:3], size, draw if crop else None)
            clip = mean_resize(frames[start : start + CLIP_FRAMES], box, size)
            if is_lively(clip):
                yield key, clip


def _read(film: Film, path: pathlib.Path, height: int) -> np.ndarray:
    spec = ClipSpec(
        frames=int(film.seconds * film.rate_hz), rate_hz=film.rate_hz, height=height, width=round(height * film.aspect)
    )
    return media.read_clip(path, spec).video


def _box(height: int, width: int, least: int, draw: np.random.Generator | None) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the central square, or of a random one of at least `least`."""
    if draw is None:
        side, top, left = height, 0, (width - height) // 2
    else:
        side = int(draw.integers(least, height + 1))
        top, left = (int(draw.integers(limit - side + 1)) for limit in (height, width))
    return left, top, left + side, top + side


def mean_resize(video_TxHxWx3: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """uint8 (T, size, size, 3): a pixel is the mean of those whose centres it covers."""
    images = [Image.fromarray(frame_HxWx3) for frame_HxWx3 in video_TxHxWx3]
    return np.stack([np.asarray(i.resize((size, size), Image.Resampling.BOX, box)) for i in images])


def is_lively(video_TxMxMx3: np.ndarray) -> bool:
    """Whether a clip is neither a plain surface nor a still."""
    video = video_TxMxMx3.astype(np.float32)
    contrast = video.std(axis=(1, 2)).mean()
    change = np.abs(np.diff(video, axis=0)).mean()
    return bool(contrast >= LEAST_CONTRAST and change >= LEAST_CHANGE)
