"""What the watermark costs and outlives, and how often it is found where it is not.

    python tests/benchmarks/bench_watermark.py --size=128 --size=256 --clean=DIR/arenas_av/1.0.0 \
        --marked=DIR/arenas_av/1.0.0:test --films=FILMS --write

The settings of the watermark were chosen on excerpts of the set natural and on the first games of the set atari
(`CALIBRATED`).  Marked here are others alone: clips of the other games, of each --marked split of a TFDS data set or a
folder of clips, evenly spaced, scaled to the size, and the middle of every film in the folder --films.  All of these, unmarked, and all clips of --clean are read for a
mark that they do not carry.  Beside it, where the package invisible-watermark is installed (pip install --no-deps
invisible-watermark==0.2.0): RivaGAN (MIT), of twice its strength, as its ONNX files give it at a height of 128 pixels.
--write puts the tables into poet/sampling/README.md.
"""

from __future__ import annotations

import argparse
import fractions
import importlib.util
import io
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from poet import media
from poet.evaluation.gallery.clips import spaced
from poet.evaluation.sets import atari
from poet.media import watermark
from poet.spec import ClipSpec
from poet.store.raw import usable
from poet.store.sources import open_source

README = Path(__file__).resolve().parents[2] / "poet" / "sampling" / "README.md"
BEGIN, END = "<!-- watermark: begin -->", "<!-- watermark: end -->"
SPLITS = ("train", "validation", "test")
# Games, the first of `atari.GAMES`, on which settings were chosen.
CALIBRATED = 3


class Mark(Protocol):
    """A watermark of 32 bits."""

    def embed(self, video: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] with it."""

    def bits(self, video: np.ndarray) -> int:
        """Right bits in it."""


class Ours:
    """`poet.media.watermark`."""

    embed = staticmethod(watermark.embed)

    def bits(self, video: np.ndarray) -> int:
        return watermark.find(video).bits


class RivaGan:
    """The networks of invisible-watermark, 1909.01285; every fourth frame votes, by their mean."""

    SIDE, STRENGTH, EVERY = 128, 2.0, 4

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        load = lambda name: onnxruntime.InferenceSession(folder / f"rivagan_{name}.onnx", options)
        self._encoder, self._decoder = load("encoder"), load("decoder")
        self._word = (np.random.default_rng(7).random((1, 32)) < 0.5).astype(np.float32)

    def embed(self, video: np.ndarray) -> np.ndarray:
        return np.stack([self._marked(frame) for frame in video])

    def _marked(self, frame: np.ndarray) -> np.ndarray:
        given = self._input(frame)
        (made,) = self._encoder.run(None, {"frame": given, "data": self._word})
        change = np.moveaxis((made - given)[0, :, 0], 0, -1) * 127.5 * self.STRENGTH
        height, width = frame.shape[:2]
        planes = [
            Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in np.moveaxis(change, -1, 0)
        ]
        return np.clip(np.round(frame + np.stack(planes, -1)), 0, 255).astype(np.uint8)

    def _input(self, frame: np.ndarray) -> np.ndarray:
        scale = self.SIDE / frame.shape[0]
        small = resized(frame[None], self.SIDE, round(frame.shape[1] * scale))[0]
        return (np.moveaxis(small, -1, 0)[None, :, None] / np.float32(127.5) - 1).astype(np.float32)

    def bits(self, video: np.ndarray) -> int:
        votes = [self._decoder.run(None, {"frame": self._input(frame)})[0][0] for frame in video[:: self.EVERY]]
        return int(((np.mean(votes, 0) > 0.5) == (self._word[0] > 0.5)).sum())


# ---------------------------------------------------------------------------------- what is done to clips


def coded(video: np.ndarray, codec: str, crf: int) -> np.ndarray:
    """What a codec gives back."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(8), options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def resized(video: np.ndarray, height: int, width: int) -> np.ndarray:
    images = map(Image.fromarray, video)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images])


def scaled(video: np.ndarray, by: float) -> np.ndarray:
    return resized(video, round(video.shape[1] * by), round(video.shape[2] * by))


def as_gif(video: np.ndarray) -> np.ndarray:
    file, (first, *rest) = io.BytesIO(), list(map(Image.fromarray, video))
    first.save(file, "GIF", save_all=True, append_images=rest, duration=120)
    with Image.open(file) as image:
        return np.stack(
            [np.asarray(frame.convert("RGB")) for frame in (image.seek(n) or image for n in range(image.n_frames))]
        )


def cropped(video: np.ndarray, share: float) -> np.ndarray:
    """Without so much of its height and width, half of it on each side; even sides."""
    rows, columns = (2 * round(side * share / 4) for side in video.shape[1:3])
    return video[:, rows : video.shape[1] - rows, columns : video.shape[2] - columns]


def lit(video: np.ndarray, gain: float, offset: float) -> np.ndarray:
    return np.clip(video.astype(float) * gain + offset, 0, 255).round().astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda video: video,
    "H.264, crf 23": lambda video: coded(video, "libx264", 23),
    "H.264, crf 28": lambda video: coded(video, "libx264", 28),
    "H.264, crf 28, then twice the size": lambda video: scaled(coded(video, "libx264", 28), 2),
    "twice the size, then H.264, crf 28": lambda video: coded(scaled(video, 2), "libx264", 28),
    "half the size and back": lambda video: scaled(scaled(video, 0.5), 2),
    "half the size, then H.264, crf 28": lambda video: coded(scaled(video, 0.5), "libx264", 28),
    "VP9, crf 32": lambda video: coded(video, "libvpx-vp9", 32),
    "gif": as_gif,
    "5 % cropped": lambda video: cropped(video, 0.05),
    "brightness x 1.2": lambda video: lit(video, 1.2, 0),
    "brightness - 30": lambda video: lit(video, 1, -30),
    "first frame alone": lambda video: video[:1],
}


# -------------------------------------------------------------------------------------------- tables


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean(np.square(one.astype(float) - other)))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean([structural_similarity(a, b, channel_axis=2) for a, b in zip(one[::8], other[::8])]))


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and the least."""
    return f"{format(np.mean(values), form)} ({format(min(values), form)})"


def marked(mark: Mark, clips: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The clips with it, and CPU seconds for a frame."""
    began = time.process_time()
    found = [mark.embed(clip) for clip in clips]
    return found, (time.process_time() - began) / sum(map(len, clips))


def rows(mark: Mark, clips: Sequence[np.ndarray]) -> list[str]:
    """Of a table: quality, time, and right bits after every change."""
    found, seconds = marked(mark, clips)
    cells = [spread([psnr(a, b) for a, b in zip(clips, found)], ".1f")]
    cells += [spread([ssim(a, b) for a, b in zip(clips, found)], ".3f"), f"{1000 * seconds:.1f}"]
    for change in CHANGES.values():
        bits = [mark.bits(change(clip)) for clip in found]
        missed = sum(count < watermark.ENOUGH for count in bits)
        cells.append(spread(bits, ".3g") + (f", {missed} of {len(bits)} missed" if missed else ""))
    return cells


def survival(sets: dict[str, list[np.ndarray]], peer: Mark | None, peer_clips: int) -> list[str]:
    """The table of what it costs and outlives; of the peer on a few of all clips."""
    columns = {of: rows(Ours(), clips) for of, clips in sets.items()}
    if peer is not None:
        few = [clip for clips in sets.values() for clip in clips[:peer_clips] if clip.shape[1] == RivaGan.SIDE]
        columns |= {f"poet, {len(few)} of these": rows(Ours(), few), f"RivaGAN, the same {len(few)}": rows(peer, few)}
    names = ["PSNR, dB", "SSIM", "CPU ms to mark a frame", *CHANGES]
    lines = [
        "| right bits of 32: mean (least) after | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, *cells in zip(names, *columns.values())]


def false_alarms(clips: Iterable[np.ndarray]) -> str:
    """What is found in clips that carry none."""
    bits = np.array([watermark.find(clip).bits for clip in clips])
    return (
        f"Of {len(bits):,} clean clips {(bits >= watermark.ENOUGH).sum()} are taken for marked ones (by chance "
        f"{len(bits) * watermark.chance(watermark.ENOUGH):.2f} would be). Their right bits: mean {bits.mean():.2f} "
        f"(fair coins 16), deviation {bits.std():.2f} ({math.sqrt(8):.2f}), most {bits.max()}."
    )


def marked_sets(places: Sequence[str], films: Path | None, count: int, size: int) -> dict[str, list[np.ndarray]]:
    """Clips to mark, by the name of their set: `count` of each but of films, size x size pixels."""
    clip = ClipSpec(height=size, width=size)
    found = {"atari": list(atari.render(clip, count, atari.GAMES[CALIBRATED:]))}
    for place in places:
        path, _, split = place.partition(":")
        source = open_source(path, split or "test", clip)
        videos = [raw.video for raw in spaced(source, count)]
        found[Path(path).parent.name] = [v if v.shape[1:3] == (size, size) else resized(v, size, size) for v in videos]
    found |= {"films": [middle(path, clip) for path in sorted(films.iterdir())]} if films else {}
    return {f"{name} {size}": videos for name, videos in found.items()}


def middle(path: Path, clip: ClipSpec) -> np.ndarray:
    """The frames in the middle of a film; all of a shorter one."""
    first = max(media.probe(path).frames(clip.rate_hz) - clip.frames, 0) // 2
    return np.stack([frame for frame, _ in itertools.islice(media.read_frames(path, clip, first=first), clip.frames)])


def read(paths: Sequence[str], clip: ClipSpec) -> Iterable[np.ndarray]:
    """All clips of data sets, as large as they are stored or `clip` says."""
    for path, split in itertools.product(paths, SPLITS):
        source = open_source(path, split, clip)
        yield from (raw.video for raw in usable(source.read(0, len(source))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, action="append", default=[], help="side of marked clips (repeatable)")
    parser.add_argument("--clips", type=int, default=8, help="to mark, of each set")
    parser.add_argument("--films", type=Path, help="folder of films, all of them to mark")
    parser.add_argument("--marked", action="append", default=[], metavar="FOLDER:SPLIT", help="to mark (repeatable)")
    parser.add_argument("--peer_clips", type=int, default=2, help="to mark by the peer, of each set of 128 pixels")
    parser.add_argument("--clean", action="append", default=[], metavar="FOLDER", help="a data set (repeatable)")
    parser.add_argument("--clean_clips", type=int, default=1200, help="at most so many of those")
    parser.add_argument("--clean_size", type=int, default=128)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    package = importlib.util.find_spec("imwatermark")
    sizes = args.size or [128]
    sets = {n: v for size in sizes for n, v in marked_sets(args.marked, args.films, args.clips, size).items()}
    clean = itertools.chain.from_iterable(sets.values())
    table = survival(sets, RivaGan(Path(package.origin).parent) if package else None, args.peer_clips)
    small = ClipSpec(height=args.clean_size, width=args.clean_size)
    text = "\n".join(
        [*table, "", false_alarms(itertools.chain(clean, itertools.islice(read(args.clean, small), args.clean_clips)))]
    )
    print(text)
    if args.write:
        before, _, rest = README.read_text().partition(BEGIN)
        media.write_text(README, f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
