"""Opening a token store: integrity, features, and the examples as a tf.data.Dataset."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from poet.runs.buckets import mirror
from poet.runs.buckets.files import is_url
from poet.spec import UserError
from poet.store import framing
from poet.store.manifest import MANIFEST_FILE, Manifest, Plan, ShardInfo, read_json
from poet.streams.text import LENGTH, STATES

if TYPE_CHECKING:
    import tensorflow as tf

# The data set's name inside TFDS, which opens every file name.
DATASET_NAME = "poet"


@functools.lru_cache(maxsize=16)
def _copy(url: str) -> pathlib.Path:
    """Listed once by a process: a store does not change."""
    return mirror.fetch(url, field="DATA.store")


def folder_of(path: str) -> pathlib.Path:
    """The folder of a store on this machine: itself, or the copy of the one behind a URL (`poet.runs.buckets`)."""
    return _copy(path) if is_url(path) else pathlib.Path(path)


def load_manifest(path: str) -> Manifest:
    """Reads the manifest and checks that every shard is there with its size.

    A TFRecord file cut at a record's end reads as a shorter file without any error; sizes find
    that at no cost, `verify` finds changed bytes too.

    Raises:
        UserError: no store, an unfinished one, another version, or a missing or cut shard.
    """
    folder = folder_of(path)
    file = folder / MANIFEST_FILE
    if not path or not file.is_file():
        unfinished = folder.is_dir() and any(folder.iterdir())
        raise UserError(
            f"there is no token store in {path!r}: no {MANIFEST_FILE}"
            + (" (tokenizing did not finish; run it again to continue)" if unfinished else "")
            + ". Write one with `poet tokenize`, or set DATA.store"
        )
    manifest = read_json(Manifest, file)
    for shard in _shards(manifest):
        _check_size(folder, shard)
    found = metadata_hashes(folder) if manifest.metadata else {}
    for name, known in manifest.metadata.items():
        if found.get(name) != known:
            raise UserError(
                f"{folder / name} is missing, damaged or was edited: its hash is not the manifest's; "
                "tokenize again into an empty folder"
            )
    return manifest


def metadata_hashes(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the files that TFDS keeps beside the shards, as far as they are there."""
    files = (folder / name for name in ("dataset_info.json", "features.json"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def _shards(manifest: Manifest) -> list[ShardInfo]:
    return [shard for split in manifest.splits.values() for shard in split.shards]


def _check_size(folder: pathlib.Path, shard: ShardInfo) -> None:
    file = folder / shard.file
    if not file.is_file():
        raise UserError(f"the store lacks the shard {file}; tokenize again into an empty folder")
    size_bytes = file.stat().st_size
    if size_bytes != shard.size_bytes:
        raise UserError(
            f"the shard {file} has {size_bytes} bytes, its manifest says {shard.size_bytes}: "
            "it is truncated or changed; tokenize again into an empty folder"
        )


def verify(path: str) -> Manifest:
    """`load_manifest`, and every shard's bytes against their hash; reads the whole store.

    Raises:
        UserError: as of `load_manifest`; or shards are damaged: all of them are named, each with the
            first record that is.
    """
    manifest = load_manifest(path)
    damaged = [what for shard in _shards(manifest) if (what := _damage(folder_of(path), shard))]
    if damaged:
        raise UserError(f"{'; '.join(damaged)}. `poet store repair` makes them again from the source")
    return manifest


def damaged_files(folder: pathlib.Path, manifest: Manifest) -> list[str]:
    """Names of the shards and TFDS files in a folder that are missing or not as a manifest says."""
    metadata = metadata_hashes(folder) if manifest.metadata else {}
    return [
        *(s.file for s in _shards(manifest) if not (folder / s.file).is_file() or _damage(folder, s)),
        *(name for name, known in manifest.metadata.items() if metadata.get(name) != known),
    ]


def _damage(folder: pathlib.Path, shard: ShardInfo) -> str:
    """A description of damage in the bytes of a shard; '' for none."""
    file = folder / shard.file
    with open(file, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256:
            return ""
        stream.seek(0)
        for record in range(shard.clips):
            start = stream.tell()
            if not framing.is_intact(stream):
                return f"the shard {file} is corrupt at record {record}, byte {start}"
    return f"the shard {file} is corrupt: its hash is not the manifest's"


def features(plan: Plan) -> Any:
    """The TFDS features of a store.

    key, caption: strings.  One int32 (length,) per stream, row-major over its grid.  In stores with
    sound, sounding: int32, 0 for a clip without a sound track, which is stored as silence.
    text_states: float16 (text_length, width), the valid positions only.  text_length: int32.

    Tensors are raw bytes: such a store reads and writes faster than one of integer lists or
    compressed tensors, and is at most a tenth larger.
    """
    import tensorflow_datasets as tfds

    raw = tfds.features.Encoding.BYTES
    flags = {stream.flag: tfds.features.Scalar(np.int32) for stream in plan.flagged}
    codes = {
        name: tfds.features.Tensor(shape=(stream.length,), dtype=np.int32, encoding=raw)
        for name, stream in plan.streams.items()
    }
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "caption": tfds.features.Text(),
            **codes,
            **flags,
            STATES: tfds.features.Tensor(shape=(None, plan.text.width), dtype=np.float16, encoding=raw),
            LENGTH: tfds.features.Scalar(np.int32),
        }
    )


def serialize(example: Mapping[str, str | int | np.ndarray]) -> bytes:
    """One example of `features` as a tf.train.Example.

    TFDS writes the same message, but in an order of fields that changes from process to process;
    this one gives equal bytes for equal examples.
    """
    import tensorflow as tf

    message = tf.train.Example()
    for name, value in example.items():
        feature = message.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            raw = value.encode() if isinstance(value, str) else value.tobytes()
            feature.bytes_list.value.append(raw)
    return message.SerializeToString(deterministic=True)


def check_split(manifest: Manifest, split: str) -> None:
    """Raises UserError, listing the splits, unless the store has this one."""
    if split not in manifest.splits:
        raise UserError(f"the token store has no split {split!r}; it has {', '.join(sorted(manifest.splits))}")


def dataset(path: str, split: str) -> tf.data.Dataset:
    """The examples of one split in the order of the files, with the shapes of `features`."""
    import tensorflow_datasets as tfds

    check_split(load_manifest(path), split)
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    builder = tfds.builder_from_directory(str(folder_of(path)))
    return builder.as_dataset(split=split, shuffle_files=False, read_config=config)
