"""Where raw clips come from: a TFDS folder, or a folder of media files with `captions.jsonl`.

A source is an ordered list of items that a pure function reads by range, so that the same ranges
can be read by one process, by many, or by a Beam pipeline.  Sources are picklable.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from poet import media
from poet.specs import ClipSpec, UserError, near_names

CAPTIONS_FILE = "captions.jsonl"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawClip:
    """video: uint8 (T, H, W, 3) of the clip's format.  audio: int16 (samples,) or None.

    depth: distances (T, h, w) of the same field of view, of any size and scale, or None.
    """

    key: str
    caption: str
    video: np.ndarray
    audio: np.ndarray | None
    depth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """An item that gives no clip."""

    key: str
    reason: str


class Source(Protocol):
    """One split of a collection.  `fingerprint` changes when its items change; `has_depth` says
    whether its clips come with distances."""

    fingerprint: str
    has_depth: bool

    def __len__(self) -> int:
        """Items, those that will be skipped included."""

    def read(self, start: int, stop: int) -> Iterator[RawClip | Skipped]:
        """Yields exactly the items start..stop-1 in their order."""


def open_source(path: str, split: str, clip: ClipSpec) -> Source:
    """Opens a split of a TFDS folder (`.../name/1.0.0`) or of a folder of media files.

    Raises:
        UserError: no such folder or split (what exists is listed), no media, or a broken line in
            `captions.jsonl`.
    """
    folder, is_tfds = find_folder(path, "STORE.source")
    return (_open_tfds if is_tfds else _open_folder)(folder, split, clip)


def find_folder(path: str, field: str) -> tuple[pathlib.Path, bool]:
    """A folder of data, and whether it is a TFDS folder; `field` is where the user named it.

    Raises:
        UserError: no such folder (near ones are listed), or one that holds versions of a data set.
    """
    folder = pathlib.Path(path)
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


def _check_split(split: str, known: list[str], where: pathlib.Path, field: str) -> None:
    if split not in known:
        raise UserError(
            f"{where} has no split {split!r}; it has {', '.join(known) or 'none'}. "
            f"Set {field} to what you want"
        )


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------ media folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Media files; `items` are (path relative to the folder, caption).  The path is the key."""

    folder: str
    items: tuple[tuple[str, str], ...]
    clip: ClipSpec
    fingerprint: str
    has_depth: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def read(self, start: int, stop: int) -> Iterator[RawClip | Skipped]:
        return read_ahead(self._read_item, start, stop)

    def _read_item(self, index: int) -> RawClip | Skipped:
        key, caption = self.items[index]
        try:
            clip = media.read_clip(pathlib.Path(self.folder, key), self.clip)
        except media.MediaError as error:
            return Skipped(key=key, reason=error.reason)
        return RawClip(key=key, caption=caption, video=clip.video, audio=clip.audio)


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


def _open_folder(folder: pathlib.Path, split: str, clip: ClipSpec) -> FolderSource:
    lines, fingerprint = folder_lines(folder, split, media.VIDEO_SUFFIXES, "STORE.splits")
    items = tuple((line["file"], line["caption"]) for line in lines)
    return FolderSource(folder=str(folder), items=items, clip=clip, fingerprint=fingerprint)


def folder_lines(
    folder: pathlib.Path, split: str, suffixes: Sequence[str], field: str
) -> tuple[list[dict[str, Any]], str]:
    """A split of a folder of media, each file with file, caption and split; and its fingerprint.

    Args:
        suffixes: of the files that are media, where no `captions.jsonl` names them.
        field: where the user named the split.

    Raises:
        UserError: no such split, no media, or a broken line in `captions.jsonl`.
    """
    captions = folder / CAPTIONS_FILE
    lines = _read_captions(captions) if captions.exists() else _list_media(folder, suffixes)
    _check_split(split, sorted({line["split"] for line in lines}), folder, field)
    lines = [line for line in lines if line["split"] == split]
    described = [
        json.dumps([line["file"], line["caption"], (folder / line["file"]).stat().st_size])
        for line in lines
    ]
    return lines, _digest(described)


def _list_media(folder: pathlib.Path, suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """Every media file below the folder, in the split 'train' and without a caption."""
    files = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.suffix.lower() in suffixes and not p.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"{folder} is neither a TFDS folder (dataset_info.json) nor a folder of media: no "
            f"{CAPTIONS_FILE} and no file ending in {', '.join(suffixes)}"
        )
    return [{"file": file, "caption": "", "split": "train"} for file in files]


def _read_captions(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of captions.jsonl, each with file, caption and split; blank ones do not count."""
    lines: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        line = _parse_caption(path, number, raw)
        if line["file"] in seen:
            raise UserError(
                f"{path} line {number}: {line['file']!r} was already given in line "
                f"{seen[line['file']]}; every file may stand once"
            )
        seen[line["file"]] = number
        lines.append(line)
    if not lines:
        raise UserError(f"{path} has no lines; give one JSON object a clip")
    return lines


def _parse_caption(path: pathlib.Path, number: int, raw: bytes) -> dict[str, Any]:
    def refuse(why: str) -> UserError:
        return UserError(
            f"{path} line {number}: {why}; expected "
            '{"file": "clips/a.mp4", "caption": "...", "split": "train"}'
        )

    try:
        line = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise refuse(f"not JSON ({error})") from None
    if not isinstance(line, dict) or not line.get("file"):
        raise refuse("no object with a file")
    line = {"caption": "", "split": "train", **line}
    for field in ("file", "caption", "split"):
        if not isinstance(line[field], str):
            raise refuse(f"{field} is {line[field]!r}, not a string")
    if not (path.parent / line["file"]).is_file():
        raise refuse(f"there is no file {path.parent / line['file']}")
    return line


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

    def __len__(self) -> int:
        return self.length

    @property
    def has_depth(self) -> bool:
        return "depth" in self.features

    def read(self, start: int, stop: int) -> Iterator[RawClip | Skipped]:
        examples = tfds_examples(self.path, self.split, self.features, start, stop)
        return (self._to_clip(index, example) for index, example in enumerate(examples, start))

    def _to_clip(self, index: int, example: Mapping[str, Any]) -> RawClip | Skipped:
        key = tfds_text(example.get("key", f"{self.split}-{index:08d}"))
        video, frames = example["video"], self.clip.frames
        depth = example.get("depth")
        if len(video) < frames:
            return Skipped(key=key, reason=f"too short: {len(video)} frames, {frames} needed")
        return RawClip(
            key=key,
            caption=tfds_text(example.get("text", example.get("caption", ""))),
            video=media.resize_video(video[:frames], self.clip.height, self.clip.width),
            audio=_fit_audio(example.get("audio"), self.clip.samples),
            depth=None if depth is None else _cropped(depth[:frames], self.clip),
        )


def _open_tfds(folder: pathlib.Path, split: str, clip: ClipSpec) -> TfdsSource:
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
    )


def tfds_split(folder: pathlib.Path, split: str, field: str) -> tuple[Any, str]:
    """The `DatasetInfo` of a TFDS folder, and the fingerprint of one of its splits.

    Raises:
        UserError: no such split; `field` is where the user named it.
    """
    info = _tfds_builder(str(folder)).info
    _check_split(split, sorted(info.splits), folder, field)
    files = info.splits[split].filepaths
    described = [f"{file.name} {os.stat(file).st_size}" for file in files]
    metadata = [(folder / name).read_text() for name in ("dataset_info.json", "features.json")]
    return info, _digest(described + metadata)


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


def _cropped(depth: np.ndarray, clip: ClipSpec) -> np.ndarray:
    """The centre of distances (T, h, w) or (T, h, w, 1) in the clip's aspect, as of its video."""
    depth = depth.reshape(depth.shape[:3])
    _, h, w = depth.shape
    height, width = min(h, w * clip.height // clip.width), min(w, h * clip.width // clip.height)
    top, left = (h - height) // 2, (w - width) // 2
    return depth[:, top : top + height, left : left + width]


def _fit_audio(audio: np.ndarray | None, samples: int) -> np.ndarray | None:
    """Mono int16 (samples,): cut at the end, or filled with silence."""
    if audio is None or not audio.size:
        return None
    if audio.ndim == 2:
        audio = audio.mean(axis=1).astype(audio.dtype)
    sound = media.to_int16(audio)[:samples]
    return np.pad(sound, (0, samples - len(sound)))
