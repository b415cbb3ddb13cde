"""WebDataset shards: tar files whose members of one name, `a/b.mp4` and `a/b.txt`, are one item.

A tar is read once to find its members; items are then read by their place in it, so that ranges
cost what they hold.  Nothing is unpacked and no index is written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from poet import media
from poet.spec import UserError
from poet.store import folders, remote, texts
from poet.store.captions import CAPTIONS_FILE

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".zip")
SPLITS = ("train", "validation", "test")
CAPTIONS = ("txt", "json")
SOUNDS = tuple(suffix[1:] for suffix in media.SOUND_SUFFIXES)
FIELD = "STORE.source"
# Tars that are listed at a time: remote ones answer slowly.
THREADS = 8
MAX_TARS = 10**6
# No caption is longer than that; nor is the header of a member, which tarfile would read whole.
MAX_CAPTION_BYTES = 2**20
MAX_HEADER_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Members of a tar with the same name; `parts` gives (offset, size in bytes) by suffix.

    `video` is the suffix of what it shows.  `broken`: why it gives nothing, '' if it does.
    """

    tar: str
    key: str
    video: str
    parts: dict[str, tuple[int, int]]
    broken: str = ""

    @property
    def sound(self) -> str | None:
        """Suffix of the member that holds the sound instead of the video."""
        return next((s for s in SOUNDS if s in self.parts and s != self.video), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarCollection:
    """The samples of a split in the order of their tars and members."""

    samples: tuple[Sample, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    max_copied_gb: float = 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def stated(self, index: int) -> remote.Stated:
        sample = self.samples[index]
        if sample.broken:
            return remote.Stated(seconds=0.0, size_bytes=0)
        offset, size = sample.parts[sample.video]
        with remote.open_part(sample.tar, offset, size) as stream:
            return remote.Stated(seconds=media.stated_seconds(stream), size_bytes=size)

    @contextlib.contextmanager
    def fetch(self, index: int, keep: bool = False) -> Iterator[remote.Found]:
        sample = self.samples[index]
        if sample.broken:
            raise remote.Unusable(sample.key, sample.broken)
        caption, notes = _caption(sample)
        with contextlib.ExitStack() as stack:
            paths = {
                part: stack.enter_context(self._copied(sample, part, keep and part == sample.video))
                for part in (sample.video, sample.sound)
                if part
            }
            yield remote.Found(
                key=sample.key, caption=caption, video=paths[sample.video], sound=paths.get(sample.sound), notes=notes
            )

    def _copied(self, sample: Sample, part: str, keep: bool) -> contextlib.AbstractContextManager[pathlib.Path]:
        offset, size = sample.parts[part]
        remote.check_size(sample.key, size, self.max_copied_gb)
        return remote.copied(sample.tar, offset, offset + size, f".{part}", keep)


def is_pattern(path: str) -> bool:
    """Whether it names tars itself: one, or a pattern with `*`, `?` or braces."""
    return _is_tar(path) and not os.path.isdir(path)


def _is_tar(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def tars_of(folder: remote.Folder) -> list[str]:
    """The tars in a folder, named by their path in it.

    In one with `captions.jsonl` tars are no shards.

    Raises:
        UserError: compressed tars alone.
    """
    if folder.size(CAPTIONS_FILE) >= 0:
        return []
    files = folder.listed().files
    tars = [file for file in files if _is_tar(file)]
    compressed = [file for file in files if file.lower().endswith(COMPRESSED)]
    if compressed and not tars and len(compressed) == len(files):
        raise compressed_error(f"{folder.name.rstrip('/')}/{compressed[0]}")
    return tars


def compressed_error(name: str) -> UserError:
    return UserError(
        f"{FIELD}: {texts.readable(name)} is compressed, so its members cannot be read by their place; "
        "unpack it to an uncompressed .tar, or to a folder"
    )


def open_tars(path: str, split: str, videos: Sequence[str], max_copied_gb: float = 0.0) -> TarCollection:
    """Opens a split of the tars in a folder or of a pattern such as `gs://b/clips-{000..127}.tar`.

    A tar is of the split that its folder, or its name up to the first '-', is called after (train,
    validation or test); any other is of 'train'.

    Args:
        videos: suffixes of what a sample may show, such as '.mp4', the preferred ones first.
        max_copied_gb: larger members give no clip; 0 is no limit.

    Raises:
        UserError: no such tar or split, or a damaged tar.
    """
    tars, notes = _find(path)
    chosen = {name: url for name, url in tars.items() if split_of(name) == split}
    folders.check_split(split, sorted({split_of(n) for n in tars}), path, "STORE.splits")
    shown = tuple(suffix[1:] for suffix in videos)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        listed = list(pool.map(lambda tar: _samples(*tar, shown), chosen.items()))
    samples = tuple(itertools.chain.from_iterable(found for found, _ in listed))
    left = list(itertools.chain.from_iterable(left for _, left in listed))
    notes += folders.not_read(path, "as no sample uses them", left)
    described = [json.dumps([s.key, sorted(s.parts.items())]) for s in samples]
    described += [remote.content_sample(functools.partial(_open, url)) for url in chosen.values()]
    return TarCollection(
        samples=samples, fingerprint=folders.digest(described), notes=notes, max_copied_gb=max_copied_gb
    )


def _open(url: str) -> Any:
    files, path = remote.filesystem(url, FIELD)
    return files.open(path, "rb")


def split_of(name: str) -> str:
    """'validation/000.tar' and 'validation-000.tar' are of 'validation', '000.tar' of 'train'."""
    first = name.partition("/")[0] if "/" in name else name.removesuffix(SUFFIX).partition("-")[0]
    return first if first in SPLITS else "train"


def _find(path: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name of every tar, its path from where all of them differ -> its path or URL, sorted; and notes
    on what lies beside them."""
    if not is_pattern(path):
        folder = remote.open_folder(path, FIELD)
        names, listed = tars_of(folder), folder.listed()
        others = sorted(set(listed.files) - set(names))
        notes = folders.not_read(path, "for the tars are", others) + listed.notes
        return {name: f"{path.rstrip('/')}/{name}" for name in names}, notes
    if os.path.exists(path):  # whatever brackets and braces its name has
        return {os.path.basename(path): path}, ()
    head = re.split(r"[*?{\[]", remote.filesystem(path, FIELD)[1])[0].rpartition("/")[0]
    found = [_glob(pattern) for pattern in expand_braces(path)]
    return {
        full.removeprefix(head).lstrip("/"): url for full, url in sorted(set(itertools.chain.from_iterable(found)))
    }, ()


def _glob(pattern: str) -> list[tuple[str, str]]:
    """(path on its file system, path or URL) of every tar; a UserError where there is none."""
    files, path = remote.filesystem(pattern, FIELD)
    found = [path] if files.exists(path) else files.glob(path)
    if not found:
        raise UserError(f"{FIELD}: there is no file {pattern}")
    if not remote.is_url(pattern):
        return [(name, name) for name in found]
    return [(name, files.unstrip_protocol(name)) for name in found]


def expand_braces(pattern: str) -> list[str]:
    """'a-{08..10}.tar' -> 'a-08.tar', 'a-09.tar', 'a-10.tar'; '{a,b}' gives both."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        width = len(numbers[1])
        if int(numbers[2]) - int(numbers[1]) >= MAX_TARS:
            raise UserError(f"{FIELD}: {pattern} names more than {MAX_TARS} tars")
        parts = [f"{n:0{width}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        parts = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [whole for part in parts for whole in expand_braces(f"{head}{part}{tail}")]


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int
    sparse: bool


def _samples(name: str, url: str, videos: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """The samples of one tar in the order of their first members, and the members that are of none.

    The name of the tar stands in the keys: WebDatasets may count from 0 in every tar.
    """
    stem, members = name[: -len(SUFFIX)], _members(url)
    groups, left = _grouped(members, videos)
    samples = []
    for key, found in groups.items():
        parts = {suffix: (m.offset, m.size) for suffix, m in found}
        video = next((v for v in videos if v in parts), "")
        used = {video, *CAPTIONS, *SOUNDS}
        left += [m.name for suffix, m in found if suffix not in used]
        samples.append(
            Sample(
                tar=url,
                key=texts.readable(f"{stem}/{key}"),
                video=video,
                parts={suffix: place for suffix, place in parts.items() if suffix in used},
                broken=_broken(found, video),
            )
        )
    return samples, [f"{stem}{SUFFIX}/{member}" for member in left]


_Group = list[tuple[str, _Member]]


def _grouped(members: Sequence[_Member], videos: Sequence[str]) -> tuple[dict[str, _Group], list[str]]:
    """(suffix, member) by the key of their sample; and members that are hidden or have no suffix.

    What follows the first dot is the suffix, as in WebDatasets.  Names may have dots of their own:
    where that is no suffix that we know, and no sample of that name shows a video, what follows the
    last dot is.
    """
    known = {*videos, *CAPTIONS, *SOUNDS}
    split = [(m, *_split(m.name, first=True)) for m in members]
    showing = {key for _, key, suffix in split if suffix in videos}
    groups: dict[str, _Group] = {}
    left = []
    for member, key, suffix in split:
        if suffix not in known and key not in showing:
            longer = _split(member.name, first=False)
            key, suffix = longer if longer[1] in known else (key, suffix)
        if posixpath.basename(member.name).startswith(".") or not suffix:
            left.append(member.name)
            continue
        groups.setdefault(key, []).append((suffix, member))
    return groups, left


def _split(name: str, first: bool) -> tuple[str, str]:
    """('a/b', 'x.mp4') at the first dot of 'a/b.x.mp4', ('a/b.x', 'mp4') at the last one."""
    folder, _, base = name.rpartition("/")
    key, _, suffix = base.partition(".") if first else base.rpartition(".")
    return f"{folder}/{key}".lstrip("/"), suffix.lower()


def _broken(found: _Group, video: str) -> str:
    """Why the members of a sample give no clip, '' if they do."""
    if not video:
        return f"no video: only {', '.join(texts.readable(suffix) for suffix, _ in found)}"
    suffixes = [suffix for suffix, _ in found]
    twice = next((m.name for suffix, m in found if suffixes.count(suffix) > 1), "")
    if twice:
        return f"duplicate: the tar holds two members {texts.readable(twice)!r}"
    sparse = next((m.name for _, m in found if m.sparse), "")
    if sparse:
        return f"sparse: {texts.readable(sparse)!r} was packed with --sparse, pack it without"
    return ""


def _members(url: str) -> list[_Member]:
    """Every file in a tar."""
    files, path = remote.filesystem(url, FIELD)
    try:
        with files.open(path, "rb") as stream, tarfile.open(fileobj=_Bounded(stream), mode="r:") as tar:
            return [_Member(posixpath.normpath(m.name), m.offset_data, m.size, m.issparse()) for m in tar if m.isreg()]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"{url} is damaged, or no uncompressed tar: {error}; fetch or write it again") from None


class _Bounded:
    """A tar to be listed: a header that claims to be huge is refused, not read into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)

    def seek(self, place: int) -> int:
        return self._stream.seek(place)

    def tell(self) -> int:
        return self._stream.tell()


def _read(sample: Sample, part: str) -> bytes:
    offset, size = sample.parts[part]
    return remote.read_bytes(sample.tar, offset, offset + size)


def _caption(sample: Sample) -> tuple[str, tuple[str, ...]]:
    """The caption: of the text file, else the field caption or text of the JSON file, else ''; and notes on it."""
    part = next((p for p in CAPTIONS if p in sample.parts), None)
    if part is None:
        return "", ()

    def refuse(why: str) -> remote.Unusable:
        return remote.Unusable(sample.key, f"broken caption: .{part}: {why}")

    if sample.parts[part][1] > MAX_CAPTION_BYTES:
        raise refuse(f"{sample.parts[part][1]} bytes, at most {MAX_CAPTION_BYTES} are read")
    try:
        text = texts.decoded(_read(sample, part))
        caption = text.strip() if part == "txt" else _json_caption(json.loads(text))
    except (ValueError, RecursionError) as error:  # what decoding and JSON raise
        raise refuse(str(error)) from None
    mended = texts.repaired(caption)
    return mended, ("caption repaired",) if mended != caption else ()


def _json_caption(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError("not an object with a caption")
    given = (value[field] for field in ("caption", "text") if value.get(field) is not None)
    caption = next(given, "")
    if not isinstance(caption, str):
        raise ValueError(f"the caption is {caption!r:.60}, not a string")
    return caption
