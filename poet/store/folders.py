"""A folder of media files, with or without `captions.jsonl`, as an ordered list of lines."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from poet.specs import UserError
from poet.store import remote

CAPTIONS_FILE = "captions.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaFolder:
    """Media files; `items` are (path relative to the folder, caption).  The path is the key."""

    folder: remote.Folder
    items: tuple[tuple[str, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)

    @contextlib.contextmanager
    def fetch(self, index: int) -> Iterator[remote.Found]:
        key, caption = self.items[index]
        with self.folder.local(key) as video:
            yield remote.Found(key=key, caption=caption, video=video)


def open_media(folder: remote.Folder, split: str, suffixes: Sequence[str]) -> MediaFolder:
    """Raises UserError as `folder_lines`."""
    lines, fingerprint = _lines(folder, split, suffixes, "STORE.splits")
    items = tuple((line["file"], line["caption"]) for line in lines)
    return MediaFolder(folder=folder, items=items, fingerprint=fingerprint)


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
    return _lines(remote.LocalFolder(name=os.fspath(folder)), split, suffixes, field)


def _lines(
    folder: remote.Folder, split: str, suffixes: Sequence[str], field: str
) -> tuple[list[dict[str, Any]], str]:
    has_captions = folder.size(CAPTIONS_FILE) >= 0
    lines = _read_captions(folder) if has_captions else _list_media(folder, suffixes)
    check_split(split, sorted({line["split"] for line in lines}), folder.name, field)
    lines = [line for line in lines if line["split"] == split]
    described = [
        json.dumps([line["file"], line["caption"], folder.size(line["file"])]) for line in lines
    ]
    return lines, digest(described)


def check_split(
    split: str, known: Sequence[str], where: str | os.PathLike[str], field: str
) -> None:
    """Raises UserError, listing the splits, unless the source has this one."""
    if split not in known:
        raise UserError(
            f"{where} has no split {split!r}; it has {', '.join(known) or 'none'}. "
            f"Set {field} to what you want"
        )


def digest(lines: Sequence[str]) -> str:
    """The fingerprint of a source that these lines describe."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _list_media(folder: remote.Folder, suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """Every media file below the folder, in the split 'train' and without a caption."""
    paths = map(pathlib.PurePosixPath, folder.files())
    files = [
        str(p) for p in paths if p.suffix.lower() in suffixes and not p.name.startswith(".")
    ]
    if not files:
        raise UserError(
            f"{folder.name} is neither a TFDS folder (dataset_info.json) nor a folder of media: no "
            f"{CAPTIONS_FILE} and no file ending in {', '.join(suffixes)}"
        )
    return [{"file": file, "caption": "", "split": "train"} for file in files]


def _read_captions(folder: remote.Folder) -> list[dict[str, Any]]:
    """The lines of captions.jsonl, each with file, caption and split; blank ones do not count."""
    path = f"{folder.name.rstrip('/')}/{CAPTIONS_FILE}"
    lines: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(folder.read(CAPTIONS_FILE).splitlines(), start=1):
        if not raw.strip():
            continue
        line = _parse_caption(folder, f"{path} line {number}", raw)
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


def _parse_caption(folder: remote.Folder, where: str, raw: bytes) -> dict[str, Any]:
    def refuse(why: str) -> UserError:
        return UserError(
            f"{where}: {why}; expected "
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
    if folder.size(line["file"]) < 0:
        raise refuse(f"there is no file {folder.name.rstrip('/')}/{line['file']}")
    return line
