"""Media of clients: decoded once, in a process of its own with limits, into files that this program has written.

    python -m poet.server.intake SOURCE STEM LIMITS

A picture becomes STEM.png, a video STEM.mov (PNG of its upright frames at their times, with its sound as PCM), a sound
STEM.wav; nothing of what a client sends reaches the process of the service or the worker as it was sent.  A line of
JSON says what was found, or why it is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poet.server.settings import MIB, ServeSpec
from poet.spec import UserError, from_dict, to_dict

PICTURE, VIDEO, SOUND = "picture", "video", "sound"
_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """What was found in a file.

    kind: 'picture', 'video' or 'sound'.  file: what was written.  frames, height, width: 0 for sound.
    """

    kind: str
    file: Path
    frames: int = 0
    height: int = 0
    width: int = 0
    seconds: float = 0.0
    has_sound: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """Its facts as JSON, without the path."""
        return {name: value for name, value in vars(self).items() if name != "file"}


def of_result(file: Path) -> Media:
    """What a file of this service's own making holds, by decoding it."""
    from poet import media
    from poet.media.sound import read_track, sound_seconds

    if file.suffix == ".wav":
        return Media(kind=SOUND, file=file, seconds=sound_seconds(file), has_sound=True)
    found = media.probe(file)
    sides = {"frames": found.count, "height": found.height, "width": found.width}
    if found.count == 1:
        return Media(kind=PICTURE, file=file, **sides)
    return Media(
        kind=VIDEO, file=file, **sides, seconds=found.seconds, has_sound=read_track(file, 16_000, 1, 0.0) is not None
    )


def take_in(source: Path, stem: Path, settings: ServeSpec, sample_rate_hz: int) -> Media:
    """Decodes a client's file in another process.

    Args:
      stem: of the new file; its suffix follows from what is found.
      sample_rate_hz: of the sound that is kept.

    Raises UserError for what is no media, damaged, or beyond the limits.
    """
    command = [sys.executable, "-m", "poet.server.intake", str(source), str(stem)]
    command += [json.dumps({"settings": to_dict(settings), "sample_rate_hz": sample_rate_hz})]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # It needs a path to this package and to libraries, and none of the service's secrets.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=settings.intake_seconds + 10,
            env=kept | one_thread,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the file took longer to read than {settings.intake_seconds:g} s: send a shorter one"
        ) from None
    found = _said(done.stdout)
    if found is None:
        raise UserError("the file cannot be read: its decoder ended at the limits of memory or time, or by a fault")
    if "error" in found:
        raise UserError(found["error"])
    return Media(**{**found, "file": Path(found["file"])})


def _said(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


# ----------------------------------------------------------------------------- in the other process


def main(arguments: list[str]) -> None:
    """The body of the process."""
    source, stem, limits = Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2])
    settings = from_dict(ServeSpec, limits["settings"])
    restrict(settings)
    try:
        found = convert(source, stem, settings, limits["sample_rate_hz"])
        print(json.dumps({**vars(found), "file": str(found.file)}))
    except UserError as error:
        print(json.dumps({"error": str(error).replace(f"{source}: ", "").replace(str(source), "the file")}))
    except MemoryError:
        print(json.dumps({"error": "the file takes more memory to read than this service allows"}))


def restrict(settings: ServeSpec) -> None:
    """Limits what this process may use, for good."""
    seconds, size = int(settings.intake_seconds) + 1, int(2 * settings.max_decoded_mib * MIB)
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, settings.intake_mib * MIB),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def convert(source: Path, stem: Path, settings: ServeSpec, sample_rate_hz: int) -> Media:
    """Decodes a file and writes what is in it.  UserError as `take_in`."""
    from poet import media
    from poet.media.files import open_media

    with open_media(source) as container:
        _check_header(container, settings)
        pictures = bool(container.streams.video)
    if not pictures:
        return _sound(source, stem, settings, sample_rate_hz)
    try:
        return _video(source, stem, settings, sample_rate_hz)
    except media.MediaError as error:
        if error.reason != "no video stream":
            raise
    return _sound(source, stem, settings, sample_rate_hz)  # Its picture was a cover.


def _check_header(container: Any, settings: ServeSpec) -> None:
    """What a file says of itself, before anything of it is decoded."""
    for stream in container.streams.video:
        _check_size(stream.codec_context.height, stream.codec_context.width, settings)
    seconds = (container.duration or 0) / 1_000_000
    if seconds > settings.max_media_seconds:
        raise UserError(f"the file lasts {seconds:.0f} s: this service takes {settings.max_media_seconds:g} s")


def _check_size(height: int, width: int, settings: ServeSpec) -> None:
    if height * width > settings.max_pixels:
        raise UserError(f"the file has {width}x{height} pixels: this service takes {settings.max_pixels} in all")


def _frames(film: Any, settings: ServeSpec) -> Iterator[tuple[Any, float]]:
    """(Frame, its seconds after the first one); UserError as soon as they exceed the limits."""
    size, start_s = 0, None
    for frame in film.frames:
        _check_size(frame.height, frame.width, settings)
        size += frame.height * frame.width * 3
        start_s = frame.time_s if start_s is None else start_s
        if size > settings.max_decoded_mib * MIB:
            raise UserError(f"the frames of the file are more than {settings.max_decoded_mib:g} MiB")
        if frame.time_s - start_s > settings.max_media_seconds:
            raise UserError(f"the file lasts longer than {settings.max_media_seconds:g} s")
        yield frame, frame.time_s - start_s


def _video(source: Path, stem: Path, settings: ServeSpec, sample_rate_hz: int) -> Media:
    from poet.media.film import open_film

    with open_film(source) as film:
        frames = _frames(film, settings)
        first = next(frames, None)
        if first is None:
            raise UserError("the file shows no frame")
        second = next(frames, None)
        if second is None:
            return _picture(first[0], stem)
        every = itertools.chain((first, second), frames)
        return _film(source, every, stem, settings, sample_rate_hz)


def _picture(frame: Any, stem: Path) -> Media:
    from poet import media

    file, pixels = stem.with_suffix(".png"), frame.pixels()
    height, width = pixels.shape[:2]
    if frame.aspect != 1:
        width = max(round(width * frame.aspect), 1)
        pixels = media.resize_image(pixels, height, width, frame.aspect)
    media.write_png_strip(file, pixels[None])
    return Media(kind=PICTURE, file=file, frames=1, height=height, width=width)


def _film(
    source: Path, frames: Iterator[tuple[Any, float]], stem: Path, settings: ServeSpec, sample_rate_hz: int
) -> Media:
    from poet import media
    from poet.media.lossless import TimedFrame, write_mov

    (first, _), count, sides = next(frames), 0, (0, 0)
    track = media.read_track(source, sample_rate_hz, round(settings.max_media_seconds * sample_rate_hz), first.time_s)

    def timed() -> Iterator[TimedFrame]:
        nonlocal count, sides
        for frame, at_s in itertools.chain([(first, 0.0)], frames):
            pixels, count = frame.pixels(), count + 1
            sides = pixels.shape[:2]
            yield TimedFrame(pixels, at_s, frame.duration_s, frame.aspect)

    file = stem.with_suffix(".mov")
    seconds = write_mov(file, timed(), track, sample_rate_hz)
    height, width = sides
    facts = {"frames": count, "height": height, "width": width, "seconds": seconds, "has_sound": track is not None}
    return Media(kind=VIDEO, file=file, **facts)


def _sound(source: Path, stem: Path, settings: ServeSpec, sample_rate_hz: int) -> Media:
    from poet import media

    samples = media.read_sound(source, sample_rate_hz, settings.max_media_seconds + 1).samples
    seconds = len(samples) / sample_rate_hz
    if seconds > settings.max_media_seconds:
        raise UserError(f"the file lasts longer than {settings.max_media_seconds:g} s")
    file = stem.with_suffix(".wav")
    media.write_wav(file, samples, sample_rate_hz)
    return Media(kind=SOUND, file=file, seconds=seconds, has_sound=True)


if __name__ == "__main__":
    main(sys.argv[1:])
