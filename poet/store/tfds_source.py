"""A prepared TFDS data set as a source of clips."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet import media
from poet.spec import ClipSpec, IngestSpec, UserError
from poet.store import framing, remote, texts
from poet.store.cutting import crop_place, cut
from poet.store.folders import check_split, digest
from poet.store.raw import Part, RawClip, Skipped, fit_samples, frames_of, ingest_of, is_told, too_short

# 'tfds:ucf101', 'tfds:name/config:version'.
TFDS_PREFIX = "tfds:"


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
        """Every example has the mean length, by the bytes of the metadata."""
        most = self.ingest.clips_per_file or self.mean_clips
        return [min(self.mean_clips, most) if self.ingest.expands else 1] * self.length

    def read(self, start: int, stop: int, part: Part | None = None) -> Iterator[RawClip | Skipped]:
        examples = tfds_examples(self.path, self.split, self.features, start, stop)
        for index, example in enumerate(examples, start):
            if self.ingest.expands:
                yield from self._to_clips(index, example, part)
            else:
                yield self._to_clip(index, example)

    def _to_clips(self, index: int, example: Mapping[str, Any], part: Part | None) -> Iterator[RawClip | Skipped]:
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


def open_tfds(folder: str | pathlib.Path, split: str, clip: ClipSpec, ingest: IngestSpec) -> TfdsSource:
    """A split of a TFDS folder.

    Raises:
        UserError: no such split, or its examples have no video.
    """
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
            f"STORE.source = {name!r}: TFDS has no such data set, and none of that name is "
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


def tfds_examples(path: str, split: str, features: Sequence[str], start: int, stop: int) -> Iterator[Mapping[str, Any]]:
    """The examples start..stop-1 of a split in the order of the files, with these features only.

    Raises:
        UserError: the files are damaged or hold fewer examples than their metadata says.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    _check_lengths(path, split, start, stop)
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
        raise UserError(f"{path} is damaged at {split} clip {index}: {reason} Make the data set again") from None


# Once for each file, of which many ranges are read.
_check_file = functools.lru_cache(maxsize=4096)(framing.check_lengths)


def _check_lengths(path: str, split: str, start: int, stop: int) -> None:
    """Of the files of this machine in which the examples start..stop-1 lie."""
    first = 0
    for file in _tfds_builder(path).info.splits[split].file_instructions:
        last = first + file.examples_in_shard
        if first < stop and start < last and os.path.isfile(file.filename):
            try:
                _check_file(file.filename)
            except ValueError as error:
                raise UserError(f"{path} is damaged in {split}: {error} Make the data set again") from None
        first = last


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
