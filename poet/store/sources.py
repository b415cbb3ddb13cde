"""Where raw clips come from: TFDS, a folder of media files with `captions.jsonl`, or tar shards.

A source is an ordered list of items that a pure function reads by range, so that the same ranges
can be read by one process, by many, or by a Beam pipeline.  Sources are picklable.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from poet import media
from poet.spec import ClipSpec, IngestSpec, StoreSpec, UserError, near_names
from poet.store import remote, texts, webdataset
from poet.store.cutting import Cut, crop_place, cut
from poet.store.folders import NoSplit, check_split, digest, open_media

_LOG = logging.getLogger(__name__)

# 'tfds:ucf101', 'tfds:name/config:version'.
TFDS_PREFIX = "tfds:"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawClip:
    """video: uint8 (T, H, W, 3) of the clip's format.  audio: int16 (samples,) or None.

    depth: distances (T, h, w) of the same field of view, of any size and scale, or None.
    notes: what was done to it, the kind before a colon.
    """

    key: str
    caption: str
    video: np.ndarray
    audio: np.ndarray | None
    depth: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """An item that gives no clip."""

    key: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Of a long file: its clips first..stop-1, counted from its start; `stop` None is its end."""

    first: int
    stop: int | None


class Source(Protocol):
    """One split of a collection.  `fingerprint` changes when its items change; `has_depth` says
    whether its clips come with distances; `notes` are lines on what is not read, for the user."""

    fingerprint: str
    has_depth: bool
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Items, those that will be skipped included."""

    def clips(self) -> Sequence[int]:
        """About how many clips each item gives, at least 1: work is shared out by it."""

    def read(
        self, start: int, stop: int, part: Part | None = None
    ) -> Iterator[RawClip | Skipped]:
        """Yields exactly the items start..stop-1 in their order.

        Where `IngestSpec.expands`, an item gives one or several in a row, with keys 'item#frame'; of
        a single item a part may be read.
        """


def open_source(
    path: str,
    split: str,
    clip: ClipSpec,
    ingest: IngestSpec = IngestSpec(),
    data_dir: str = "",
) -> Source:
    """Opens a split of a collection.

    Args:
        path: a TFDS folder (`.../name/1.0.0`) or name (`tfds:name/config:version`), a folder of
            media files, or of tar shards, a pattern of tar shards; all but TFDS names may be URLs.
        data_dir: where TFDS names were prepared; '' is TFDS's own default.

    Raises:
        UserError: no such folder or split (what exists is listed), no media, an unknown field in
            `captions.jsonl`, a damaged tar, or no package for the URL.
    """
    from poet.store.media_source import MediaSource  # which imports this module

    suffixes, limit_gb = media.picture_suffixes(clip.frames), ingest.max_copied_gb
    if not webdataset.is_pattern(path):
        folder, is_tfds = _find_source(path, data_dir)
        if is_tfds:
            return _open_tfds(folder, split, clip, ingest)
        path = os.fspath(folder)
        files = remote.open_folder(path, "STORE.source", limit_gb)
        if not webdataset.tars_of(files):
            collection = open_media(files, split, suffixes)
            return MediaSource(media=collection, clip=clip, ingest=ingest)
    tars = webdataset.open_tars(path, split, suffixes, limit_gb)
    return MediaSource(media=tars, clip=clip, ingest=ingest)


def open_splits(
    spec: StoreSpec, clip: ClipSpec, ingest: IngestSpec = IngestSpec()
) -> dict[str, Source]:
    """The splits of `spec.splits`; where it names none, train, and validation if the source has it.

    Raises:
        UserError: see `open_source`; a split that is named, or train, is missing.
    """
    opened = {}
    for split in spec.splits or ("train", "validation"):
        try:
            opened[split] = open_source(spec.source, split, clip, ingest, spec.data_dir)
        except NoSplit:
            if spec.splits or not opened:
                raise
    return opened


def _find_source(path: str, data_dir: str) -> tuple[str | pathlib.Path, bool]:
    """A folder or its URL, and whether it is a TFDS folder."""
    if path.startswith(TFDS_PREFIX) and not os.path.exists(path):
        return tfds_folder(path, data_dir), True
    if remote.is_url(path):
        # Of TFDS alone this file lies in the folder itself.
        return path, remote.open_folder(path, "STORE.source").size("dataset_info.json") >= 0
    return find_folder(path, "STORE.source")


def find_folder(path: str, field: str) -> tuple[pathlib.Path, bool]:
    """A folder of data, and whether it is a TFDS folder; `field` is where the user named it.

    Raises:
        UserError: no such folder (near ones are listed), or one that holds versions of a data set.
    """
    folder = pathlib.Path(path)
    if path.lower().endswith(webdataset.COMPRESSED) and folder.is_file():
        raise webdataset.compressed_error(path)
    if not path or not folder.is_dir():
        raise UserError(f"{field} = {path!r} is not a folder{_neighbours(folder)}")
    if (folder / "dataset_info.json").exists():
        return folder, True
    versions = sorted(str(p.parent) for p in folder.glob("*/dataset_info.json"))
    if versions:
        raise UserError(
            f"{path} holds versions of a TFDS data set; give one: {', '.join(versions)}"
        )
    return folder, False


def _neighbours(folder: pathlib.Path) -> str:
    siblings = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
    return f" in {folder.parent}{near_names(folder.name, siblings)}" if siblings else ""


def read_ahead(read_item: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """Decodes a few files ahead of the consumer, in threads: PyAV releases the GIL."""
    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in range(start, stop):
                pending.append(pool.submit(read_item, index))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def frames_of(part: Part | None, clip: ClipSpec) -> tuple[int, int | None]:
    """Number of the first frame of a part, and of the one after its last; None is the end."""
    if part is None:
        return 0, None
    return part.first * clip.frames, None if part.stop is None else part.stop * clip.frames


def ingest_of(part: Part | None, ingest: IngestSpec) -> IngestSpec:
    """A part ends where the next one begins, not after a number of clips."""
    return ingest.replace(clips_per_file=0) if part else ingest


def is_told(first: int, piece: Cut, ingest: IngestSpec) -> bool:
    """Whether what gives no clip is told of: what is left at the end of a later part is not."""
    return not first or (ingest.shots and piece.length > 0)


def too_short(key: str, frames: int, clip: ClipSpec, ingest: IngestSpec) -> Skipped:
    """Of a shot, or of a whole file, that gives no clip."""
    what = "short shot" if ingest.shots else "too short"
    return Skipped(key=key, reason=f"{what}: {frames} frames, {clip.frames} needed")


def origin(key: str) -> str:
    """What a clip was cut from: a film, a map, an episode.  Clips of one are no independent ones.

    >>> origin("films/a.mp4#17"), origin("validation/doom1-E1M1/00003"), origin("a/b.mp4")
    ('films/a.mp4', 'validation/doom1-E1M1', 'a/b.mp4')
    """
    item = key.partition("#")[0]
    folder, _, name = item.rpartition("/")
    return folder if folder and name.partition(".")[0].isdigit() else item


def usable(items: Iterable[RawClip | Skipped]) -> Iterator[RawClip]:
    """The clips among the items.  What gives none is logged, once in a process."""
    for item in items:
        if isinstance(item, RawClip):
            yield item
        else:
            say_once(f"{item.key} is skipped: {item.reason}")


@functools.lru_cache(maxsize=100_000)
def say_once(message: str) -> None:
    _LOG.info("%s", message)


def fit_samples(sound: np.ndarray, samples: int) -> np.ndarray:
    """Cut at the end, or filled with silence."""
    return np.pad(sound[:samples], (0, max(samples - len(sound), 0)))


# ------------------------------------------------------------------------------------- TFDS folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A prepared TFDS data set with the features video, and where it has them audio, depth, text and
    key.

    TFDS keeps no frame rate: frames and samples are taken to be at the clip's rates.  Longer clips
    are cut at their end, shorter ones skipped, and other sizes cropped and resized.
    """

    path: str
    split: str
    clip: ClipSpec
    length: int
    features: tuple[str, ...]
    fingerprint: str
    ingest: IngestSpec = IngestSpec()
    notes: tuple[str, ...] = ()
    mean_clips: int = 1

    def __len__(self) -> int:
        return self.length

    @property
    def has_depth(self) -> bool:
        return "depth" in self.features

    def clips(self) -> Sequence[int]:
        """Every example has the mean length, which follows from the bytes that the metadata tell."""
        most = self.ingest.clips_per_file or self.mean_clips
        return [min(self.mean_clips, most) if self.ingest.expands else 1] * self.length

    def read(
        self, start: int, stop: int, part: Part | None = None
    ) -> Iterator[RawClip | Skipped]:
        examples = tfds_examples(self.path, self.split, self.features, start, stop)
        for index, example in enumerate(examples, start):
            if self.ingest.expands:
                yield from self._to_clips(index, example, part)
            else:
                yield self._to_clip(index, example)

    def _to_clips(
        self, index: int, example: Mapping[str, Any], part: Part | None
    ) -> Iterator[RawClip | Skipped]:
        """Every clip of an example is one of its own, with the frames and samples from there on."""
        key, (first, stop) = self._key(index, example), frames_of(part, self.clip)
        place = crop_place(key, self.ingest)
        video = example["video"][first:stop]
        if not len(video) and first:
            return
        frames = media.resize_video(video, self.clip.height, self.clip.width, place)
        for piece in cut(frames, self.clip.frames, ingest_of(part, self.ingest)):
            start = first + piece.start
            made = {**example, "key": f"{key}#{start}", "video": piece.video}
            if piece.video is None:
                if is_told(first, piece, self.ingest):
                    yield too_short(made["key"], piece.length, self.clip, self.ingest)
                continue
            if example.get("audio") is not None:
                offset = round(start / self.clip.rate_hz * self.clip.sample_rate_hz)
                made["audio"] = example["audio"][offset:]
            if example.get("depth") is not None:
                made["depth"] = example["depth"][start:]
            yield self._to_clip(index, made)

    def _key(self, index: int, example: Mapping[str, Any]) -> str:
        return tfds_text(example.get("key", f"{self.split}-{index:08d}"))

    def _to_clip(self, index: int, example: Mapping[str, Any]) -> RawClip | Skipped:
        key = self._key(index, example)
        video, frames = example["video"], self.clip.frames
        depth, place = example.get("depth"), crop_place(key, self.ingest)
        if len(video) < frames:
            return Skipped(key=key, reason=f"too short: {len(video)} frames, {frames} needed")
        return RawClip(
            key=key,
            caption=tfds_text(example.get("text", example.get("caption", ""))),
            video=media.resize_video(video[:frames], self.clip.height, self.clip.width, place),
            audio=_fit_audio(example.get("audio"), self.clip.samples),
            depth=None if depth is None else _cropped(depth[:frames], self.clip, place),
        )


def _open_tfds(
    folder: str | pathlib.Path, split: str, clip: ClipSpec, ingest: IngestSpec
) -> TfdsSource:
    info, fingerprint = tfds_split(folder, split, "STORE.splits")
    names = ("key", "video", "audio", "depth", "text", "caption")
    features = tuple(name for name in names if name in info.features)
    if "video" not in features:
        raise UserError(f"{folder} has no feature 'video'; it has {', '.join(info.features)}")
    return TfdsSource(
        path=str(folder),
        split=split,
        clip=clip,
        length=info.splits[split].num_examples,
        features=features,
        fingerprint=fingerprint,
        ingest=ingest,
        mean_clips=_mean_clips(info, split, clip),
    )


def _mean_clips(info: Any, split: str, clip: ClipSpec) -> int:
    """About how many clips an example of the split gives, if its video is stored as it is."""
    *_, height, width, _ = info.features["video"].shape
    frame_bytes = (height or clip.height) * (width or clip.width) * 3
    bytes_each = info.splits[split].num_bytes / max(info.splits[split].num_examples, 1)
    return max(int(bytes_each / (frame_bytes * clip.frames)), 1)


def tfds_folder(name: str, data_dir: str) -> str:
    """The folder of a prepared data set that is given by name: 'tfds:ucf101'.

    Raises:
        UserError: no such data set, or it was not prepared.
    """
    import tensorflow_datasets as tfds

    known = name.removeprefix(TFDS_PREFIX)
    where = f"STORE.data_dir = {data_dir!r}" if data_dir else "TFDS's default folder"
    try:
        builder = tfds.builder(known, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"STORE.source = {name!r}: TFDS knows no such data set, and none of that name is "
            f"prepared in {where} ({reason})"
        ) from None
    if not (builder.data_path / "dataset_info.json").exists():
        folder = f" --data_dir={data_dir}" if data_dir else ""
        raise UserError(
            f"STORE.source = {name!r} is not prepared in {where}: run `tfds build "
            f"{known}{folder}`, or give the folder where it is in STORE.data_dir"
        )
    return os.fspath(builder.data_path)


def tfds_split(folder: str | pathlib.Path, split: str, field: str) -> tuple[Any, str]:
    """The `DatasetInfo` of a TFDS folder, and the fingerprint of one of its splits.

    Raises:
        UserError: no such split; `field` is where the user named it.
    """
    from etils import epath

    texts.check_name("the TFDS folder", str(folder))
    info = _tfds_builder(str(folder)).info
    check_split(split, sorted(info.splits), folder, field)
    files = map(epath.Path, info.splits[split].filepaths)
    described = [
        f"{file.name} {file.stat().length} {remote.content_sample(functools.partial(file.open, 'rb'))}"
        for file in files
    ]
    place = epath.Path(folder)
    metadata = [(place / name).read_text() for name in ("dataset_info.json", "features.json")]
    return info, digest(described + metadata)


def tfds_examples(
    path: str, split: str, features: Sequence[str], start: int, stop: int
) -> Iterator[Mapping[str, Any]]:
    """The examples start..stop-1 of a split in the order of the files, with these features only.

    Raises:
        UserError: the files are damaged or hold fewer examples than their metadata says.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # One file after another, without a cache: the items keep the order of the files.
    dataset = _tfds_builder(path).as_dataset(
        split=tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs"),
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        decoders=tfds.decode.PartialDecoding({name: True for name in features}),
    )
    index = start
    try:
        for example in dataset.as_numpy_iterator():
            yield example
            index += 1
    except tf.errors.OpError as error:
        # TensorFlow wraps its reason into the names of graph nodes.
        reason = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", error.message)
        raise UserError(
            f"{path} is damaged at {split} clip {index}: {reason} Make the data set again"
        ) from None


@functools.lru_cache(maxsize=8)
def _tfds_builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(path)


def tfds_text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cropped(depth: np.ndarray, clip: ClipSpec, place: media.Place) -> np.ndarray:
    """Distances (T, h, w) or (T, h, w, 1) cropped as their video is, to whole samples."""
    depth = depth.reshape(depth.shape[:3])
    box = media.centre_box(*depth.shape[1:], clip.height, clip.width, place=place)
    left, top, right, bottom = (round(edge) for edge in box)
    return depth[:, top:bottom, left:right]


def _fit_audio(audio: np.ndarray | None, samples: int) -> np.ndarray | None:
    """Mono int16 (samples,): cut at the end, or filled with silence."""
    if audio is None or not audio.size:
        return None
    if audio.ndim == 2:
        audio = audio.mean(axis=1).astype(audio.dtype)
    return fit_samples(media.to_int16(audio), samples)
