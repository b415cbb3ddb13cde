"""Sources of raw clips: TFDS, a folder of media files with `captions.jsonl`, or tar shards.

A source is an ordered list of items that a pure function reads by range, so that the same ranges
can be read by one process, by many, or by a Beam pipeline.  Sources are picklable.
"""

from __future__ import annotations

import os
import pathlib

from poet import media
from poet.spec import ClipSpec, IngestSpec, StoreSpec, UserError, near_names
from poet.store import remote, tfds_source, webdataset
from poet.store.folders import NoSplit, open_media
from poet.store.media_source import MediaSource
from poet.store.raw import Source


def open_source(path: str, split: str, clip: ClipSpec, ingest: IngestSpec = IngestSpec(), data_dir: str = "") -> Source:
    """Opens a split of a collection.

    Args:
        path: a TFDS folder (`.../name/1.0.0`) or name (`tfds:name/config:version`), a folder of
            media files, or of tar shards, a pattern of tar shards; all but TFDS names may be URLs.
        data_dir: where TFDS names were prepared; '' is TFDS's own default.

    Raises:
        UserError: no such folder or split (what exists is listed), no media, an unknown field in
            `captions.jsonl`, a damaged tar, or no package for the URL.
    """
    suffixes, limit_gb = media.picture_suffixes(clip.frames), ingest.max_copied_gb
    if not webdataset.is_pattern(path):
        folder, is_tfds = _find_source(path, data_dir)
        if is_tfds:
            return tfds_source.open_tfds(folder, split, clip, ingest)
        path = os.fspath(folder)
        files = remote.open_folder(path, "STORE.source", limit_gb)
        if not webdataset.tars_of(files):
            collection = open_media(files, split, suffixes)
            return MediaSource(media=collection, clip=clip, ingest=ingest)
    tars = webdataset.open_tars(path, split, suffixes, limit_gb)
    return MediaSource(media=tars, clip=clip, ingest=ingest)


def open_splits(spec: StoreSpec, clip: ClipSpec, ingest: IngestSpec = IngestSpec()) -> dict[str, Source]:
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
    if path.startswith(tfds_source.TFDS_PREFIX) and not os.path.exists(path):
        return tfds_source.tfds_folder(path, data_dir), True
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
        raise UserError(f"{path} holds versions of a TFDS data set; give one: {', '.join(versions)}")
    return folder, False


def _neighbours(folder: pathlib.Path) -> str:
    siblings = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
    return f" in {folder.parent}{near_names(folder.name, siblings)}" if siblings else ""
